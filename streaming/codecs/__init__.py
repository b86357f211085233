"""Bytes ↔ table, one batch at a time: exactly one row or one rejection per payload, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa

from streaming.codecs.avro import AvroCodec
from streaming.codecs.json import JsonCodec
from streaming.errors import UsageError
from streaming.interfaces import Codec

CODECS: Final[Mapping[str, Callable[[pa.Schema], Codec]]] = {"json": JsonCodec, "avro": AvroCodec}


def codec(name: str, schema: pa.Schema) -> Codec:
    """The codec of this name for one stream's schema. UsageError naming all codecs if there is none."""
    try:
        return CODECS[name](schema)
    except KeyError:
        raise UsageError(f"there is no codec {name!r}; the codecs are {', '.join(CODECS)}") from None
