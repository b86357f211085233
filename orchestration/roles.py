"""Roles put together: a role's name and the lab's settings become transport, codec, step or sink, and run until stopped.

The command line, the supervisor and the experiments all start roles here. Nothing here imports Dagster.
"""

from __future__ import annotations
