"""The claims ledger: what the guide claims, what a run measured, and what follows.

A measurement travels in the notebook's own output (see `say.CLAIM`); `labkit run` collects it into the run's JSON, and
the ledger is read from there. Nothing is kept anywhere else, so a verdict always has a run behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from labkit.core.runtime import data_path
from labkit.course.say import CLAIM, say
from labkit.show.cards import Card

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Measure:
    """One number that a claim stands on, and the bound that it has to meet."""

    key: str
    what: str
    unit: str
    holds: Literal["at least", "at most"]
    bound: float

    def verdict(self, low: float, high: float) -> Verdict:
        """Whether every value from `low` to `high` meets the bound, none does, or only some."""
        inside = (
            (low >= self.bound, high >= self.bound)
            if self.holds == "at least"
            else (low <= self.bound, high <= self.bound)
        )
        return "holds" if all(inside) else "undecided" if any(inside) else "does not hold"

    def __str__(self) -> str:
        return f"{self.what}: {self.holds} {self.bound:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Claim:
    """One claim of the guide: its wording, where it is audited, on what, and what is measured."""

    id: int
    wording: str
    labs: tuple[str, ...]
    measured_on: str
    measures: tuple[Measure, ...]

    def measure(self, key: str | None) -> Measure:
        """The measure of a key; with None, the only one. Raises ValueError, listing the keys."""
        keys = [measure.key for measure in self.measures]
        if key is None and len(keys) == 1:
            return self.measures[0]
        if key not in keys:
            raise ValueError(f"claim {self.id} has no measure {key!r}; name one of {', '.join(keys)}")
        return self.measures[keys.index(key)]


@dataclass(frozen=True)
class Measured:
    """A value for one measure of a claim: its interval, its runs, its conditions; `estimated` if by formula only."""

    claim: int
    measure: str
    value: float
    low: float
    high: float
    runs: int
    condition: str
    estimated: bool = False

    @property
    def verdict(self) -> Verdict:
        """What this measurement says about its measure."""
        return claims()[self.claim].measure(self.measure).verdict(self.low, self.high)

    def __str__(self) -> str:
        unit = claims()[self.claim].measure(self.measure).unit
        runs = f", {self.runs} runs" if self.runs > 1 else ""
        interval = f" (from {self.low:.4g} to {self.high:.4g}{runs})" if self.high > self.low else ""
        how = "Estimated" if self.estimated else "Measured"
        return f"{how}: {self.value:.4g} {unit}".rstrip() + f"{interval}, on {self.condition}"


def claims(path: Path | None = None) -> dict[int, Claim]:
    """The claims by number, from data/claims.yaml. Raises ValueError for a key that is missing or unknown."""
    import yaml

    source = path or data_path("claims.yaml")
    rows = yaml.safe_load(source.read_text("utf-8"))
    try:
        found = [
            Claim(**{**row, "labs": tuple(row["labs"]), "measures": tuple(Measure(**m) for m in row["measures"])})
            for row in rows
        ]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{source} has a claim that cannot be read: {error}") from error
    return {claim.id: claim for claim in found}


def claim(
    number: int,
    value: float,
    *,
    condition: str,
    measure: str | None = None,
    low: float | None = None,
    high: float | None = None,
    runs: int = 1,
    estimated: bool = False,
    quiet: bool = False,
) -> Measured:
    """Record what a run measured for a claim, show the verdict, and return the measurement.

    Args:
        number: the claim, 1 to 15.
        value: what was measured, in the measure's unit.
        condition: on what: model, shape, hardware; it becomes part of the verdict.
        measure: which of the claim's measures; may be left out where there is only one.
        low, high: the interval over the runs; by default the value itself.
        runs: how many runs the interval comes from.
        estimated: the value comes from a formula, not from a measurement; the card says so.
        quiet: record one line instead of a card, for a table of many that follows.

    Raises ValueError for an unknown claim or measure, an empty condition, or an interval that misses the value.
    """
    known = claims()
    if number not in known:
        raise ValueError(f"there is no claim {number!r}; the claims are {min(known)} to {max(known)}")
    chosen = known[number].measure(measure)
    low, high = value if low is None else low, value if high is None else high
    if not all(math.isfinite(v) for v in (low, value, high)) or not low <= value <= high:
        raise ValueError(f"claim {number} was given {value} with interval [{low}, {high}]; the value must lie inside")
    if not condition.strip():
        raise ValueError(f"claim {number} needs a condition: on which model, shape and hardware was it measured?")
    if runs < 1:
        raise ValueError(f"claim {number} was given {runs} runs; give 1 or more")
    made = Measured(number, chosen.key, float(value), float(low), float(high), runs, condition, estimated)
    lines = (
        f"Claimed: {known[number].wording}",
        f"Counts as holding when {chosen}.",
        f"{made}.",
    )
    name = f"Claim {number}" if len(known[number].measures) == 1 else f"Claim {number}, {chosen.key}"
    say(Card("claim", f"{name}: {made.verdict}, here", () if quiet else lines), CLAIM, asdict(made), line=quiet)
    return made


def overall(measured: Iterable[Measured]) -> str:
    """What several measurements of a claim come to: one verdict, or under how many of its conditions it holds."""
    found = [each.verdict for each in measured]
    verdicts = set(found)
    if not verdicts:
        return "not measured yet"
    if len(verdicts) == 1:
        return verdicts.pop()
    if "holds" not in verdicts:
        return "does not hold, or is undecided"
    return f"holds under {found.count('holds')} of {len(found)} conditions"


def read_runs(folder: Path) -> dict[int, list[Measured]]:
    """What the runs in `folder` measured (their JSON files, key "claims"), by claim."""
    found: dict[int, list[Measured]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is no run that can be read ({error}); remove it and run that lab again"
            ) from error
        if not isinstance(content, Mapping):
            continue
        for row in content.get("claims", ()):
            found.setdefault(row["claim"], []).append(Measured(**row))
    return found


def ledger(measured: Mapping[int, Sequence[Measured]] | None = None) -> Card:
    """The table of all claims: number, wording, the labs that audit it, and the verdict so far."""
    measured = measured or {}
    rows = [("claim", "the guide says", "lab", "verdict")]
    for number, entry in claims().items():
        rows.append((str(number), entry.wording, ", ".join(entry.labs), overall(measured.get(number, ()))))
    return Card("claim", "The claims ledger", (), table=tuple(rows))
