"""A schema registry (Confluent's REST interface, which Apicurio and Karapace speak too) that knows this lab's schemas.

The lab needs none: each Avro payload names its schema by fingerprint. Others do: who reads our topics finds the schema
under the topic's subject, and a change that could not read what is stored is refused before anybody writes it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from streaming.errors import BrokerUnavailable, DataError, UsageError

COMPATIBILITY: Final = "BACKWARD_TRANSITIVE"  # the newest schema reads everything that was ever written
_CONFLICT: Final = 409
_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_TIMEOUT_S: Final = 10.0


class Registry:
    """One registry. `url` is the interface's root, without a slash at its end."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is no address of a schema registry: http://HOST:PORT/…")
        self._url = url.rstrip("/")

    def insist(self) -> None:
        """From now on every subject refuses a schema that could not read what earlier ones wrote."""
        self._ask("PUT", "/config", {"compatibility": COMPATIBILITY})

    def register(self, topic: str, schema: Mapping[str, Any]) -> int:
        """The schema of a topic's values; its id, the same one if it was there. DataError when it is incompatible."""
        subject = f"{topic}-value"
        try:
            answer = self._ask("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema)})
        except urllib.error.HTTPError as error:
            if error.code == _CONFLICT:
                raise DataError(
                    f"{subject}: this schema can't read what earlier ones wrote: {error.read().decode()[:500]}"
                ) from error
            raise UsageError(f"{self._url} answers {error.code} to {subject}: {error.read().decode()[:500]}") from error
        return int(answer["id"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """HTTPError for a refusal below 500; BrokerUnavailable while it does not answer or is not ready."""
        request = urllib.request.Request(  # noqa: S310 - http or https, see above
            self._url + path, json.dumps(body).encode(), {"Content-Type": _TYPE}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code < 500:  # from there on the server has troubles of its own
                raise
            raise BrokerUnavailable(f"no usable answer from the schema registry {self._url}: {error}") from error
        except OSError as error:
            raise BrokerUnavailable(f"no usable answer from the schema registry {self._url}: {error}") from error
