"""What a home remembers of a lab in containers, and what its host's user is told who may not read its passwords."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestration.brokers import address_of
from orchestration.cli import app, containers
from streaming.cluster.rabbitmq import OPERATOR, Credentials
from streaming.errors import BrokerUnavailable, SetupError
from streaming.home import Home
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab

TOPICS = ["create-topics", "--bootstrap-servers", "kafka-1:19092"]
QUEUES_TOO = ["create-queues", "--host", "rabbitmq-1"]


@pytest.mark.parametrize("order", [(TOPICS, QUEUES_TOO), (QUEUES_TOO, TOPICS), (QUEUES_TOO,)])
def test_who_prepares_containers_remembers_that_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[list[str], ...]
) -> None:
    for name in ("_create", "_create_queues"):  # no broker is asked
        monkeypatch.setattr(containers, name, lambda *_: None)
    for command in order:
        said = CliRunner().invoke(app, [*command, "--home", str(tmp_path / "home")], catch_exceptions=False)
        assert said.exit_code == 0
    lab = Lab.load(Home(tmp_path / "home"))
    assert lab.in_containers
    assert not lab.owns_brokers
    assert not lab.owns_rabbitmq
    assert lab.brokers == (KAFKA, QUEUES, RABBITMQ_STREAMS)


@contextlib.contextmanager
def as_somebody_else(path: Path) -> Iterator[None]:
    """Within, this process may not read the file: it is nobody where it was root, else the file is for no user."""
    path.chmod(0)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        path.chmod(0o600)


def test_passwords_that_are_another_users_are_no_crash_but_advice(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    native = Lab(brokers=(QUEUES,))
    with pytest.raises(BrokerUnavailable, match="streamgauge up --brokers"):
        address_of(home, native, QUEUES, OPERATOR)
    home.brokers("rabbitmq").mkdir(parents=True)
    Credentials.of(home.brokers("rabbitmq"))
    in_containers = Lab(brokers=(QUEUES,), in_containers=True, rabbitmq_host="rabbitmq-1")
    with as_somebody_else(home.brokers("rabbitmq") / "credentials.json"):
        with pytest.raises(SetupError, match=r"docker compose -f docker/compose\.yaml exec dagster-code streamgauge"):
            address_of(home, in_containers, QUEUES, OPERATOR)
        with pytest.raises(SetupError, match=r"credentials\.json are not for user .*\n.*the user who owns"):
            address_of(home, native, QUEUES, OPERATOR)
    assert address_of(home, in_containers, QUEUES, OPERATOR).host == "rabbitmq-1"
