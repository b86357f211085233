"""`python -m orchestration.cli` is `streamgauge`."""

from orchestration.cli import main

main()
