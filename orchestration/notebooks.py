"""The introduction's notebooks: the brokers they use, how they are executed, the guide's page made from one of them.

`python -m orchestration.notebooks` executes all of them on real brokers and keeps their outputs; the page
`docs/exercises.md` and its figures are written from the executed notebook and from nothing else. Invariant: no path of
the machine that executed them is kept.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from orchestration.brokers import address_of
from streaming.cluster import listeners
from streaming.cluster import rabbitmq as nodes
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import OPERATOR, DisposableRabbitMQ
from streaming.errors import BrokerUnavailable, StreamgaugeError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import QUEUES, Lab
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.declaring import channel_of

FOLDER: Final = PROJECT_ROOT / "docs" / "notebooks"
PAGE: Final = PROJECT_ROOT / "docs" / "exercises.md"
FIGURES: Final = PROJECT_ROOT / "docs" / "figures"
NAMES: Final = ("send", "receive", "exercises", "rabbitmq")
PAGE_OF: Final = "exercises"
_CELL_TIMEOUT_S: Final = 240
_ORIGIN: Final = "<!-- written from docs/notebooks/exercises.ipynb by `make notebooks`; change that -->\n"


class Brokers(Protocol):
    """What a notebook talks to."""

    @property
    def bootstrap_servers(self) -> str:
        """Addresses for clients."""
        ...

    def close(self) -> None:
        """Let go; brokers of one's own end."""
        ...


@dataclass(frozen=True, slots=True)
class LabBrokers:
    """The running lab's brokers, which go on when the notebook has ended."""

    bootstrap_servers: str

    def close(self) -> None:
        """The lab goes on."""


def own_brokers() -> DisposableCluster:
    """Three brokers of this notebook's own, to be stopped and killed. They end with close() or with the kernel."""
    return DisposableCluster().__enter__()


def any_brokers() -> Brokers:
    """The brokers of the lab (STREAMGAUGE_HOME) if they answer, else three of this notebook's own."""
    lab = Lab.load(Home.locate(os.environ))
    if listeners.survey(lab.kafka).is_answered:
        return LabBrokers(lab.kafka)
    return own_brokers()


@dataclass(frozen=True, slots=True)
class RabbitNode:
    """A RabbitMQ node that a notebook talks to. `own`: it is the notebook's, and ends with close() or the kernel."""

    address: Address
    own: DisposableRabbitMQ | None = None

    def close(self) -> None:
        """Let go; the lab's node goes on."""
        if self.own:
            self.own.close()


def any_rabbitmq() -> RabbitNode:
    """A node of the lab's RabbitMQ (STREAMGAUGE_HOME) that answers, else one of this notebook's own.

    SetupError with what to type where RabbitMQ is missing and cannot be installed from here.
    """
    home = Home.locate(os.environ)
    if (lab := Lab.load(home)).uses_rabbitmq:
        with suppress(BrokerUnavailable):
            for address in address_of(home, lab, QUEUES, OPERATOR).nodes:
                with suppress(BrokerUnavailable), channel_of(address):
                    return RabbitNode(address)
    nodes.install(print)
    own = DisposableRabbitMQ().__enter__()
    return RabbitNode(nodes.address_of(own.nodes[0], own.credentials), own)


def execute(name: str, environment: Mapping[str, str]) -> Any:
    """Run a notebook from its first cell to its last in a fresh kernel; the executed one. StreamgaugeError on failure.

    `environment` is added to the kernel's.
    """
    import nbformat  # noqa: PLC0415 - not needed by what merely opens brokers
    from jupyter_client.manager import KernelManager  # noqa: PLC0415
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbclient.exceptions import CellExecutionError  # noqa: PLC0415

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="sg-notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=_CELL_TIMEOUT_S,
            kernel_name="python3",
            kernel_manager_class=KernelManager,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute(env={**os.environ, "IPYTHONDIR": folder, **environment}, stderr=subprocess.DEVNULL)
        except CellExecutionError as error:
            raise StreamgaugeError(f"the notebook {name} failed: {error}") from error
    return _cleaned(notebook)


def page(notebook: Any) -> tuple[str, dict[str, bytes]]:
    """The guide's page of an executed notebook, and its figures: file name → PNG."""
    figures: dict[str, bytes] = {}
    parts = [_ORIGIN]
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(f"{cell.source}\n")
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        else:
            parts.append(f"```python\n{cell.source}\n```\n")
            parts += [_shown(output, figures, heading) for output in cell.outputs]
    return "\n".join(parts), figures


def write_page(notebook: Any) -> None:
    """Write the page and its figures where the documentation has them."""
    text, figures = page(notebook)
    PAGE.write_text(text)
    FIGURES.mkdir(exist_ok=True)
    for name, png in figures.items():
        (FIGURES / name).write_bytes(png)


def _shown(output: Any, figures: dict[str, bytes], heading: str) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```\n"
    data = output.data
    if "image/png" in data:
        name = f"{PAGE_OF}-{len(figures) + 1}.png"
        figures[name] = base64.b64decode(data["image/png"])
        return f"![{heading}](figures/{name})\n"
    return f"{data['text/markdown']}\n" if "text/markdown" in data else f"```text\n{data['text/plain']}\n```\n"


def _cleaned(notebook: Any) -> Any:
    """Without what differs between machines. StreamgaugeError when an output names a path of this one."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
            _insist_on_no_path(cell)
    return notebook


def _joined(outputs: Sequence[Any]) -> Iterator[Any]:
    """Consecutive pieces of one stream as one: where they were cut is chance."""
    held = None
    for output in outputs:
        if held and output.output_type == "stream" and output.name == held.name:
            held.text += output.text
            continue
        if held:
            yield held
        held = output if output.output_type == "stream" else None
        if not held:
            yield output
    if held:
        yield held


def _insist_on_no_path(cell: Any) -> None:
    places = {str(PROJECT_ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}
    text = str(list(cell.outputs))
    if found := [place for place in places if re.search(re.escape(place) + r"\b", text)]:
        raise StreamgaugeError(f"an output of cell {cell.id} names {', '.join(found)}: {text[:300]}")


@contextmanager
def _environment(home: Path | None) -> Iterator[dict[str, str]]:
    """What tells a kernel which lab there is: this one, or none."""
    if home:
        yield {"STREAMGAUGE_HOME": str(home)}
        return
    with tempfile.TemporaryDirectory(prefix="sg-no-lab-") as folder:
        Lab(bootstrap_servers="127.0.0.1:1").save(Home(Path(folder)).open())
        yield {"STREAMGAUGE_HOME": folder}


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute notebooks and keep what they show; see --help."""
    import nbformat  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m orchestration.notebooks", description="execute the notebooks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; default: {', '.join(NAMES)}")
    parser.add_argument("--into", type=Path, help="write the executed ones here; default: in place, with the page")
    parser.add_argument("--home", type=Path, help="use the brokers of this lab; default: brokers of their own")
    given = parser.parse_args(arguments)
    with _environment(given.home) as environment:
        for name in given.names or NAMES:
            print(f"executing {name}", file=sys.stderr)
            done = execute(name, environment)
            nbformat.write(done, (given.into or FOLDER) / f"{name}.ipynb")  # type: ignore[no-untyped-call]
            if name == PAGE_OF and not given.into:
                write_page(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
