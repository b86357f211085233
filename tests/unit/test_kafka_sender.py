"""A producer that is let go of is gone, with its threads and connections."""

from __future__ import annotations

import gc
import weakref

from streaming.transports.kafka.publisher import Sender
from streaming.transports.kafka.settings import TRANSACTIONAL_PRODUCER


def test_a_replaced_producer_does_not_wait_for_the_garbage_collector() -> None:
    sender = Sender("127.0.0.1:1", {**TRANSACTIONAL_PRODUCER, "transactional.id": "replaced"}, "replaced")
    gone = weakref.ref(sender)
    gc.disable()
    try:
        del sender
        assert gone() is None
    finally:
        gc.enable()
