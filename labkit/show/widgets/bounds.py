"""What a widget refuses: values of its traits that point outside the record."""

from __future__ import annotations

import traitlets


class OutOfRange(traitlets.TraitError, ValueError):
    """A trait was given a value outside its range; the widget keeps the value it had, wherever the other came from."""


def within(name: str, value: int, low: int, high: int) -> int:
    """The value, if it lies from low to high.

    Raises OutOfRange, a ValueError, that names the trait and the range.

    >>> within("Ribbon.layer", 1, 0, 3)
    1
    """
    if not low <= value <= high:
        raise OutOfRange(f"{name} is {value}; give {low} to {high}")
    return value
