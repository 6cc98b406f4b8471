"""Lab 15: right answers, as `reveal` shows them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence


def choose_two(load: Sequence[int], ready: Sequence[bool], u: float, v: float) -> int:
    able = [at for at, fine in enumerate(ready) if fine]
    if not able:
        raise ValueError("no replica is ready")
    one = able.pop(int(u * len(able)))
    if not able:
        return one
    two = able[int(v * len(able))]
    return two if load[two] < load[one] else one


def owner(prefix: bytes, load: Mapping[str, int], room: float) -> str:
    if not load or room < 1:
        raise ValueError(f"room is {room}, for {len(load)} replicas; give 1 or more, and a replica")
    most = math.ceil(room * (sum(load.values()) + 1) / len(load))
    free = [id for id in load if load[id] < most]
    return max(free, key=lambda id: hashlib.sha256(id.encode() + b"/" + prefix).digest())


def etag(data: bytes, part: int) -> str:
    if part < 1:
        raise ValueError(f"part is {part}; give 1 byte or more")
    parts = [data[at : at + part] for at in range(0, len(data), part)] or [b""]
    digests = b"".join(hashlib.md5(each).digest() for each in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


def safe_path(folder: str, name: str) -> str:
    tricks = any(letter in name for letter in "\\:\0")
    if tricks or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no path inside of a folder")
    return f"{folder}/{name}"


def pages(
    failed: Sequence[int], asked: Sequence[int], budget: float, rules: Sequence[tuple[int, int, float]]
) -> list[bool]:
    def burns(minute: int, window: int, factor: float) -> bool:
        since = max(0, minute + 1 - window)
        total = sum(asked[since : minute + 1])
        return total > 0 and sum(failed[since : minute + 1]) / total > factor * budget

    return [
        any(burns(minute, long, factor) and burns(minute, short, factor) for long, short, factor in rules)
        for minute in range(len(asked))
    ]
