"""A schema registry that is not there, or is none; a real one is asked in tests/containers."""

from __future__ import annotations

import pytest

from streaming.cluster import ports
from streaming.codecs.registry import Registry
from streaming.errors import BrokerUnavailable, UsageError


def test_an_address_that_is_none_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(UsageError, match="no address of a schema registry"):
        Registry("schema-registry:8080")


def test_a_registry_that_does_not_answer_may_be_asked_again() -> None:
    nobody = next(port for port in range(28_900, 28_990) if ports.is_free(port))
    with pytest.raises(BrokerUnavailable, match="schema registry"):
        Registry(f"http://127.0.0.1:{nobody}/apis/ccompat/v7").insist()
