"""How many replicas there shall be, from how many requests there are. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.whole import need_whole


@dataclass(frozen=True)
class Autoscale:
    """How many replicas there shall be: as many as there are requests by `target`, looked at every `every` seconds.

    Args:
        target: requests, waiting and running, for one replica.
        least, most: replicas.
        up_after, down_after: seconds for which more, or fewer, must have been wanted.
        starts_in: seconds from the decision until a new one is ready.

    Source: the rule of Ray Serve's autoscaler, without its smoothing.
    """

    target: float
    least: int
    most: int
    every: float = 1.0
    up_after: float = 3.0
    down_after: float = 60.0
    starts_in: float = 20.0

    def __post_init__(self) -> None:
        need_whole("least", self.least)
        need_whole("most", self.most, self.least)
        if not (self.target > 0 and self.every > 0 and min(self.up_after, self.down_after, self.starts_in) >= 0):
            raise ValueError(f"{self} cannot be; give a target and an interval above 0, and no negative seconds")


class Scaler:
    """The rule at work: it remembers since when more, or fewer, have been wanted.

    >>> scaler = Scaler(Autoscale(target=2, least=1, most=8, up_after=3))
    >>> [scaler.change(second, ongoing=9, present=2) for second in (0, 1, 2, 3)]
    [0, 0, 0, 3]
    """

    def __init__(self, rule: Autoscale) -> None:
        self.rule = rule
        self._since = 0.0
        self._sign = 0

    def change(self, now: float, ongoing: int, present: int) -> int:
        """How many replicas to start (above 0) or to send away (below 0) at this second.

        Args:
            ongoing: requests that wait or run; present: replicas there are, those that still start included.
        """
        rule = self.rule
        wanted = min(max(math.ceil(ongoing / rule.target), rule.least), rule.most)
        sign = (wanted > present) - (wanted < present)
        if sign != self._sign:
            self._sign, self._since = sign, now
        if not sign or now - self._since < (rule.up_after if sign > 0 else rule.down_after):
            return 0
        self._since = now
        return wanted - present
