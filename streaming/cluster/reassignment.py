"""Moving a partition's copies to other brokers, by Kafka's own tool: librdkafka does not speak that request.

Invariant: the tool only asks for the move and returns; the cluster copies the data and changes the leaders by itself,
and who waits for the end looks at the cluster.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from streaming.cluster import jars
from streaming.cluster.kafka import java
from streaming.errors import BrokerUnavailable, StreamgaugeError

Moves = Mapping[tuple[str, int], Sequence[int]]  # topic and partition → brokers, the preferred leader first
TOOL: Final = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"
_HEAP_MIB: Final = 128
_TOOL_TIMEOUT_S: Final = 120.0
_SAYS_LINES: Final = 5


def write_plan(path: Path, moves: Moves) -> None:
    """Write the moves as the tool reads them."""
    partitions = [
        {"topic": topic, "partition": partition, "replicas": list(brokers)}
        for (topic, partition), brokers in moves.items()
    ]
    path.write_text(json.dumps({"version": 1, "partitions": partitions}))


def execute_command(bootstrap_servers: str, plan: Path) -> list[str]:
    """The command line that asks the cluster to carry out a plan."""
    options = ["--bootstrap-server", bootstrap_servers, "--reassignment-json-file", str(plan), "--execute"]
    return [*java(_HEAP_MIB), TOOL, *options]


def reassign(bootstrap_servers: str, moves: Moves) -> None:
    """Ask the cluster for the moves; they go on after the return. StreamgaugeError with the tool's words if refused."""
    jars.install(lambda _: None)
    with tempfile.TemporaryDirectory(prefix="sg-reassign-") as folder:
        plan = Path(folder) / "plan.json"
        write_plan(plan, moves)
        command = execute_command(bootstrap_servers, plan)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise BrokerUnavailable(f"{bootstrap_servers}: the reassignment was not accepted in time") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise StreamgaugeError(f"the reassignment was refused: {' '.join(said[:_SAYS_LINES])}")
