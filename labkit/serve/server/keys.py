"""Who may ask: keys from a file or the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

VARIABLE = "LABKIT_API_KEYS"


def read_keys(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of a file (one a line; # begins a remark), then those of LABKIT_API_KEYS (with commas between).

    Raises ValueError for a file without any: whoever names a file wants to be asked for a key.
    """
    keys: list[str] = []
    if path is not None:
        lines = (line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines())
        keys = [line for line in lines if line]
        if not keys:
            raise ValueError(f"{path} holds no key; write one a line")
    keys += [key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    return tuple(dict.fromkeys(keys))


class Keys:
    """The keys that open the door; with none it stands open.

    Kept and compared as digests, all of them each time, so that the time taken says nothing about any key.

    >>> keys = Keys(["one", "two"])
    >>> keys.holder("Bearer two"), keys.holder("Bearer three"), keys.holder(None)
    (1, None, None)
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, authorization: str | None) -> int | None:
        """The number of the key in an Authorization header; None if it holds none that is known."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip().encode("latin-1", "replace"))
        found = None
        for number, digest in enumerate(self._digests):
            if hmac.compare_digest(given, digest):
                found = number
        return found if scheme.lower() == "bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
