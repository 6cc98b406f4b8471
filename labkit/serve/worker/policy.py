"""How long is waited, and how often tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.whole import need_whole

SUSPECT = 2  # deaths that a request has been in before it is run alone
PARDON = 16  # tokens of each continuation that it then produces beyond where it fell, and it may join the others


@dataclass(frozen=True)
class Policy:
    """The patience of a supervisor; all times in seconds.

    Args:
        patience: without a sign of life, or without a step while there is work, until a child counts as hung.
        loading_patience: the same while it loads.
        first_delay, longest_delay: before a failed child is replaced; doubled at every failure in a row.
        max_failures: in a row that are survived. A child that ends a request well, or is ready for `calm` seconds,
            breaks the row; so does a death whose cause was found.
        calm: see there.
        grace: for a child that was asked to end, before it is killed.

    Raises ValueError for values out of range.

    >>> [Policy(first_delay=0.5, longest_delay=3).delay(failures) for failures in (1, 2, 3, 4)]
    [0.5, 1.0, 2.0, 3]
    """

    patience: float = 60.0
    loading_patience: float = 600.0
    first_delay: float = 0.1
    longest_delay: float = 10.0
    max_failures: int = 5
    calm: float = 60.0
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name in ("patience", "loading_patience", "first_delay", "longest_delay", "calm", "grace"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                raise ValueError(f"{name} is {seconds!r}; give seconds above 0")
        need_whole("max_failures", self.max_failures, 0)

    @property
    def beat(self) -> float:
        """Seconds between two signs of life."""
        return min(1.0, self.patience / 5)

    def delay(self, failures: int) -> float:
        """Before the next child, after so many failures in a row."""
        return min(self.longest_delay, self.first_delay * 2 ** min(max(failures - 1, 0), 30))
