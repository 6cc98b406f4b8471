"""What the server allows: sizes, times, keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from labkit.core.whole import need_whole


@dataclass(frozen=True)
class Settings:
    """The limits that every request is held to, decided once.

    Args:
        name: under which the model is served; None: the backend's own name.
        keys: secrets, of which a request must bring one; none: everybody may ask.
        max_body_bytes, body_seconds: of a request's body, and how long it may take to arrive.
        header_seconds: how long a connection may take to send the head of a request.
        max_depth: of brackets inside brackets in a body.
        max_prompt_tokens, max_output_tokens: of one prompt and one answer; None: what the model's context allows.
        max_choices: answers of one request: its prompts times `n`.
        max_concurrency: requests that are being answered at once; more are told to come again (429).
        max_unread: pieces of an answer that wait for a client who reads slowly; with more it is cut off.
        write_seconds: how long a client may take to accept what is written.
        retry_seconds: told to who is turned away, as Retry-After.
        tokenize_inline_bytes: shorter prompts are tokenised at once, longer ones in a thread.

    Raises ValueError for values out of range.

    >>> Settings(max_depth=0)
    Traceback (most recent call last):
    ValueError: max_depth is 0; give a whole number of 1 or more
    """

    name: str | None = None
    keys: tuple[str, ...] = ()
    max_body_bytes: int = 2 << 20
    body_seconds: float = 30.0
    header_seconds: float = 20.0
    max_depth: int = 64
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_choices: int = 128
    max_concurrency: int = 1024
    max_unread: int = 1024
    write_seconds: float = 30.0
    retry_seconds: int = 1
    tokenize_inline_bytes: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "keys") or (value is None and "None" in str(field.type)):
                continue
            if field.name.endswith("_seconds") and field.name != "retry_seconds":
                _need_seconds(field.name, value)
            else:
                need_whole(field.name, value, 1)
        for key in self.keys:
            if not isinstance(key, str) or not key.strip() or not key.isascii() or any(c.isspace() for c in key):
                raise ValueError("a key is empty, or has spaces or letters outside ASCII; give plain words")
        if self.name is not None and not self.name.strip():
            raise ValueError("name is empty; give the name that requests should use, or None for the model's own")


def _need_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; give seconds, above 0")
