"""Variables of the environment, for a while: what is started meanwhile keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables have these values, for as long as the block lasts.

    >>> with environment({"LABKIT_EXAMPLE": "here"}):
    ...     os.environ["LABKIT_EXAMPLE"]
    'here'
    >>> "LABKIT_EXAMPLE" in os.environ
    False
    """
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
