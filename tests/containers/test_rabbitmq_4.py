"""RabbitMQ 4 in a container: the transports' conformance suite, told by a URL where it is."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from streaming.cluster import ports, rabbitmq_container
from streaming.cluster.rabbitmq import OPERATOR, VHOST, Credentials, NodePorts
from streaming.errors import StreamgaugeError
from streaming.transports.rabbitmq import url
from streaming.transports.rabbitmq.declaring import channel_of
from streaming.transports.rabbitmq.management import ask
from tests.containers import engine
from tests.containers.engine import wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
FILES = "/etc/streamgauge"
START = f"install -m 0400 {FILES}/{rabbitmq_container.COOKIE} /var/lib/rabbitmq/.erlang.cookie && exec rabbitmq-server"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one node, told by the files of the lab in containers."""
    engine.insist_on_one()
    engine.provide_rabbitmq_image()
    folder = tmp_path_factory.mktemp("rabbitmq-4")
    listening, credentials = NodePorts(*ports.free(6)), Credentials.of(tmp_path_factory.mktemp("credentials"))
    rabbitmq_container.write_files(folder, Path(FILES), credentials, [listening])
    folder.chmod(0o755)
    told = {
        "RABBITMQ_NODENAME": "rabbit@rabbitmq-1",
        "RABBITMQ_CONFIG_FILE": f"{FILES}/rabbitmq-1.conf",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{FILES}/{rabbitmq_container.PLUGINS}",
        "RABBITMQ_LOGS": "-",
    }
    name = f"streamgauge-rabbitmq-4-{uuid.uuid4().hex[:8]}"
    published = (listening.amqp, listening.stream, listening.management)
    words = ["docker", "run", "--detach", "--name", name, "--hostname", "rabbitmq-1", "--user", "rabbitmq"]
    words += [f"--publish=127.0.0.1:{port}:{port}" for port in published]
    words += [f"--env={variable}={value}" for variable, value in told.items()]
    engine.run(*words, f"--volume={folder}:{FILES}:ro", engine.RABBITMQ_IMAGE, "bash", "-c", START)
    try:
        asked = f"stream_port={listening.stream}&management_port={listening.management}"
        login = f"{OPERATOR}:{quote(credentials.passwords[OPERATOR], safe='')}"
        where = f"amqp://{login}@127.0.0.1:{listening.amqp}/{VHOST}?{asked}"
        wait_for(lambda: complaint(where), within_s=180)
        yield where
    finally:
        print(engine.run("docker", "logs", "--tail", "40", name).stdout)
        engine.run("docker", "rm", "--force", "--volumes", name)


def complaint(where: str) -> str | None:
    try:
        with channel_of(url.address_of(where)):
            return None
    except StreamgaugeError as error:
        return str(error)


def test_queues_and_streams_conform_on_rabbitmq_4(node: str) -> None:
    assert ask(url.address_of(node), "/overview")["rabbitmq_version"].startswith("4.")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance", "-k", "rabbitmq"],
        cwd=engine.ROOT,
        env={**os.environ, "STREAMGAUGE_TEST_RABBITMQ_URL": node},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
