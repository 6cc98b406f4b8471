"""Lab 14's clinic: five servers that answer well on a quiet day, each with one fault, under the same two busy minutes.

A toy: steps of a tenth of a second, answers of so many steps, a pool of blocks. Visitors, their requests and their
manners are the same for all. Who is to diagnose them should not read on: `FAULTS` says what is wrong with each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

FAULTS = {
    "A": "blocks leak",
    "B": "assertion",
    "C": "endless queue",
    "D": "batch dies",
    "E": "plain comparison",
    "healthy": "",
}
STEP, SECONDS = 0.1, 120  # seconds of a step, and of the whole
PLACES, BLOCKS, EACH = 8, 240, 6  # answers at once; blocks of the pool, and of an answer
BURST = range(50, 62)  # seconds in which three times as many come
MOST_WAITING = 16
KEY = "k7-moe"


@dataclass
class Visit:
    """One request: the second at which it comes, how many steps its answer takes, and its manners: "", "long" (a
    prompt beyond the context), "nan" (logits that are no numbers) or "leaves" (in the middle)."""

    at: float
    steps: int
    manners: str = ""
    done: int = 0


@dataclass
class Chart:
    """What an operator sees: by second, answers, 4xx, 5xx, those who wait, and free blocks; by answer, its second and
    how long it took; by number of right leading letters, steps of comparing a wrong key."""

    answered: list[int] = field(default_factory=lambda: [0] * SECONDS)
    refused: list[int] = field(default_factory=lambda: [0] * SECONDS)
    failed: list[int] = field(default_factory=lambda: [0] * SECONDS)
    waiting: list[int] = field(default_factory=lambda: [0] * SECONDS)
    free: list[int] = field(default_factory=lambda: [0] * SECONDS)
    took: list[tuple[float, float]] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)


def visits(seed: int = 0) -> list[Visit]:
    """Two minutes of visitors, the same for every patient."""
    draw, now, found = random.Random(seed), 0.0, []
    while True:
        now += draw.expovariate(12.0 if int(now) in BURST else 4.0)
        if now >= SECONDS:
            return found
        manners = draw.choices(("", "long", "nan", "leaves"), (80, 4, 2, 14))[0]
        found.append(Visit(now, draw.randint(6, 20), manners))


def chart(patient: str, seed: int = 0) -> Chart:
    """Two minutes of a patient, or of the healthy twin. Raises ValueError for another name."""
    if patient not in FAULTS:
        raise ValueError(f"there is no patient {patient!r}; they are {', '.join(FAULTS)}")
    return _Ward(FAULTS[patient], seed).run()


class _Ward:
    """One server on its way through the two minutes."""

    def __init__(self, fault: str, seed: int) -> None:
        self.fault, self.coming = fault, visits(seed)
        self.seen, self.free = Chart(), BLOCKS
        self.waiting: list[Visit] = []
        self.running: list[Visit] = []

    def run(self) -> Chart:
        for step in range(int(SECONDS / STEP)):
            now = step * STEP
            second = min(int(now), SECONDS - 1)
            while self.coming and self.coming[0].at <= now:
                self._arrive(self.coming.pop(0), second)
            self._start()
            self._advance(now, second)
            self.seen.waiting[second], self.seen.free[second] = len(self.waiting), self.free
        self.seen.compared = [self._compare(KEY[:right] + "?" * (len(KEY) - right)) for right in range(len(KEY))]
        return self.seen

    def _arrive(self, visit: Visit, second: int) -> None:
        if visit.manners == "long":
            (self.seen.failed if self.fault == "assertion" else self.seen.refused)[second] += 1
        elif len(self.waiting) >= MOST_WAITING and self.fault != "endless queue":
            self.seen.refused[second] += 1
        else:
            self.waiting.append(visit)

    def _start(self) -> None:
        while self.waiting and len(self.running) < PLACES and self.free >= EACH:
            self.running.append(self.waiting.pop(0))
            self.free -= EACH

    def _advance(self, now: float, second: int) -> None:
        for visit in self.running:
            visit.done += 1
        if any(visit.manners == "nan" and visit.done > 2 for visit in self.running):
            lost = [v for v in self.running if self.fault == "batch dies" or (v.manners == "nan" and v.done > 2)]
            self.seen.failed[second] += len(lost)
            self._end(lost)
        left = [visit for visit in self.running if visit.manners == "leaves" and visit.done >= visit.steps // 2]
        self._end(left, freed=self.fault != "blocks leak")
        done = [visit for visit in self.running if visit.done >= visit.steps]
        self._end(done)
        self.seen.answered[second] += len(done)
        self.seen.took += [(now, now - visit.at) for visit in done]

    def _end(self, visits: list[Visit], freed: bool = True) -> None:
        self.running = [visit for visit in self.running if visit not in visits]
        self.free += EACH * len(visits) * freed

    def _compare(self, given: str) -> int:
        """Letters that are looked at until a wrong key is found out."""
        if self.fault != "plain comparison":
            return len(KEY)
        return next(at for at, (a, b) in enumerate(zip(given, KEY, strict=True), 1) if a != b)
