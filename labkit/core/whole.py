"""The check that most sizes want."""

from __future__ import annotations


def need_whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless a value is a whole number of `least` or more; True and False are none.

    >>> need_whole("batch_size", 0)
    Traceback (most recent call last):
    ValueError: batch_size is 0; give a whole number of 1 or more
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number of {least} or more")
