"""What a measurement found: every contestant's times, memory and errors, and who could not take part, and why."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
WRONG = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 3e-2}
"""A relative error from which a contestant computes something else, by dtype; it is no rival then."""

LEFT_OUT = "left out, as asked"


@dataclass(frozen=True)
class Absent:
    """Who was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """One contestant on one shape.

    Args:
        seconds: of one call, in each round.
        errors: relative, of the output and of each gradient: ‖found − wanted‖ / ‖wanted‖.
        saved: bytes kept between forward and backward besides inputs and output; None where that is not known.
        note: what a reader should know.
        limit: another error from which it is wrong, where the inexact is what is measured.
    """

    name: str
    seconds: tuple[float, ...]
    errors: Mapping[str, float]
    saved: int | None = None
    note: str = ""
    limit: float | None = None

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the rounds lie between these.

        >>> Measured("a", (1.0, 2.0, 3.0, 4.0, 5.0), {}).quartiles
        (2.0, 4.0)
        """
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def wrong(self, dtype: str) -> bool:
        """Whether it computes something else, NaN included."""
        return not all(error <= (self.limit or WRONG[dtype]) for error in self.errors.values())


@dataclass(frozen=True)
class Verdict:
    """Ours beside the best of the others: how many times as fast, and the quartiles of that over rounds."""

    ours: str
    other: str
    ratio: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """ "ahead" or "LOSS", and whether the rounds agree.

        >>> Verdict("labkit", "other", 0.98, 0.97, 1.01).word
        'LOSS, within the spread'
        """
        within = ", within the spread" if self.low < 1 < self.high else ""
        return ("ahead" if self.ratio >= 1 else "LOSS") + within


@dataclass(frozen=True)
class Result:
    """All contestants on one shape, in one mode ("forward", "forward + backward" or "graph").

    Args:
        shape: its name and sizes.
        load: the most loaded expert's pairs over the mean, where there is routing.
        flops, bytes: the least that must be done; saved: the least that must be kept, in bytes.
        flop_rate, byte_rate: ceilings, medians of the same rounds; None where nothing was timed.
        interpreted: whether our kernels were, so that no time says anything and there is no verdict.
    """

    subject: str
    mode: str
    shape: Mapping[str, Any]
    dtype: str
    load: float | None
    flops: int
    bytes: int
    saved: int
    flop_rate: float | None
    byte_rate: float | None
    interpreted: bool
    measured: tuple[Measured, ...]
    absent: tuple[Absent, ...] = ()

    @property
    def floor(self) -> float | None:
        """Seconds that the machine's ceilings allow: the longer of computing and moving; None if they say nothing."""
        if self.interpreted or self.flop_rate is None or self.byte_rate is None:
            return None
        return max(self.flops / self.flop_rate, self.bytes / self.byte_rate)

    def verdict(self, ours: str = "labkit") -> Verdict | None:
        """Ours beside the fastest of the others that are right; None if one of the two is missing, or interpreted."""
        right = {each.name: each for each in self.measured if not each.wrong(self.dtype)}
        others = sorted((each for each in right.values() if each.name != ours), key=lambda each: each.median)
        if self.interpreted or ours not in right or not others:
            return None
        best = others[0]
        pairs = zip(best.seconds, right[ours].seconds, strict=True)
        low, high = Measured("", tuple(other / mine for other, mine in pairs), {}).quartiles
        return Verdict(ours, best.name, best.median / right[ours].median, low, high)

    def fault(self, ours: str = "labkit") -> str:
        """What is wrong with ours: not measured, or not what was wanted; empty if nothing is."""
        for each in self.absent:
            if each.name == ours and each.reason != LEFT_OUT:
                return f"not measured: {each.reason}"
        for each in self.measured:
            if each.name == ours and each.wrong(self.dtype):
                far = {name: error for name, error in each.errors.items() if not error <= WRONG[self.dtype]}
                return "wrong: " + ", ".join(f"{name} is off by {error:.1e}" for name, error in far.items())
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Everything, with what follows from it, as JSON takes it."""
        told, floor = asdict(self), self.floor
        for each, plain in zip(self.measured, told["measured"], strict=True):
            low, high = each.quartiles
            plain |= {"median": each.median, "quartiles": [low, high], "wrong": each.wrong(self.dtype)}
            plain["share_of_ceiling"] = None if floor is None else floor / each.median
        verdict = self.verdict()
        told |= {"floor": floor, "verdict": None if verdict is None else {**asdict(verdict), "word": verdict.word}}
        return told


@dataclass
class Report:
    """All results of a run, on which machine, and how they were taken."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: list[Result] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write everything as JSON, in one step; times in seconds, memory in bytes, rates a second."""
        told = {"format": FORMAT, "machine": dict(self.machine), "settings": dict(self.settings)}
        told["results"] = [result.to_dict() for result in self.results]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(_finite(told), indent=1, ensure_ascii=False) + "\n", "utf-8")
        part.replace(path)


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become words."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
