"""Tells a child that hangs from one that is busy."""

from __future__ import annotations

from labkit.serve.worker.policy import Policy


class Watch:
    """Counts how long a child has been silent, and how long it has not got on while it had work.

    The clock is that of the watcher's own ticks: if the watcher was stopped itself, that time is not held against the
    child. `working` says whether the child has something to do; loading is work.

    >>> watch = Watch(Policy(patience=1))
    >>> watch.ready()
    >>> [watch.tick(0.2) for _ in range(6)][-1]
    'gave no sign of life for 1 s'
    """

    def __init__(self, policy: Policy) -> None:
        self.working = True
        self._beat, self._patience, self._next = policy.beat, policy.loading_patience, policy.patience
        self._silent = self._still = 0.0
        self._turns = -1  # the first sign of life is progress too

    def ready(self) -> None:
        """It has loaded, and has nothing to do yet."""
        self.working, self._patience = False, self._next
        self._silent = self._still = 0.0

    def heard(self) -> None:
        """It said something, if only that it lives."""
        self._silent = 0.0

    def moved(self) -> None:
        """It got on."""
        self._still = 0.0

    def turned(self, turns: int) -> None:
        """Its loop has come round so often."""
        if turns != self._turns:
            self._turns = turns
            self.moved()

    def tick(self, seconds: float) -> str:
        """So much time has passed: what is wrong with the child, empty if nothing is."""
        seconds = min(seconds, 2 * self._beat)
        self._silent += seconds
        self._still = self._still + seconds if self.working else 0.0
        if max(self._silent, self._still) <= self._patience:
            return ""
        silent = self._silent > self._patience / 2  # stillness is counted in beats, so either may come first
        return f"{'gave no sign of life' if silent else 'made no progress'} for {self._patience:g} s"
