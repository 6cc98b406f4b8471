"""An engine of the contract without a model: answers that follow from the prompt, and faults on demand. No torch.

The answer of continuation k of a prompt is a text of characters of one to four bytes; its tokens are the bytes, so that
a token may end in the middle of a character. Faults are given as `Fault`s: what happens, at which token of which
prompt, and how often, counted by files in a folder, since those who count in memory die.
"""

from __future__ import annotations

import codecs
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.serve.engine.backend import Info
from labkit.serve.engine.delta import Delta, StepReport
from labkit.serve.engine.params import SamplingParams
from labkit.serve.scheduler import Chunk, Full, Limits, Load, Step

LETTERS = "aé→😀 ñ"


def answer(prompt: Sequence[int], params: SamplingParams, index: int = 0) -> tuple[bytes, str]:
    """All tokens of a continuation, and its text; later continuations are shorter."""
    draw = random.Random(repr((tuple(prompt), None if params.greedy else params.seed, index)))
    length = -(-params.max_tokens // (index + 1))
    tokens = "".join(draw.choice(LETTERS) for _ in range(length)).encode()[:length]
    return tokens, tokens.decode(errors="replace")


@dataclass(frozen=True)
class Fault:
    """What happens when a prompt that holds `mark` is about to get token number `at`, the first `times` times.

    kind: "die" (SIGKILL), "exit", "raise", "hang" (the loop stands still), "freeze" (the whole process does), "slow".
    """

    kind: str
    mark: int
    at: int = 0
    times: int = 1 << 30

    def strikes(self, folder: str) -> bool:
        """Whether it is still its turn; counts."""
        for number in range(self.times):
            try:
                (Path(folder) / f"{self.kind}-{self.mark}-{self.at}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def happen(self) -> None:
        """Now."""
        if self.kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "exit":
            os._exit(3)
        elif self.kind == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        elif self.kind == "hang":
            time.sleep(3600)
        elif self.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.kind == "slow":
            time.sleep(0.3)


@dataclass
class Running:
    """One continuation."""

    id: str
    index: int
    prompt: tuple[int, ...]
    params: SamplingParams
    tokens: bytes
    done: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def take(self) -> Delta:
        """The next token."""
        token = self.tokens[self.done]
        self.done += 1
        last = self.done == len(self.tokens)
        text = self.decoder.decode(bytes([token]), final=last)
        return Delta(self.id, self.index, (token,), text, finish_reason="length" if last else None)


class StandIn:
    """See above.

    Args:
        pace: seconds that a step takes.
        limits: how many run, and wait; told: whether the parent may know.
        faults, folder: see `Fault`.
    """

    def __init__(
        self,
        pace: float = 0.0,
        limits: Limits | None = None,
        faults: Sequence[Fault] = (),
        folder: str = "",
        told: bool = True,
    ) -> None:
        self.pace, self.faults, self.folder = pace, faults, folder
        self._limits = limits or Limits(num_blocks=4096, block_size=16, max_context=4096, max_sequences=64)
        self.limits = self._limits if told else None
        self.info = Info("stand-in", 1 << 16, self._limits.max_context, 1, 4, (0,), (0,), 4096, 16, 64)
        self.waiting: list[Running] = []
        self.running: list[Running] = []
        self.observers: list[Callable[[StepReport], None]] = []
        self.steps = self.cancelled = self.finished = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, id, prompt, params, *, priority=0, salt="") -> None:
        if len(self.waiting) >= self._limits.max_waiting:
            raise Full("the stand-in is full")
        self.resume(id, prompt, params, dict.fromkeys(range(params.n), ()), priority=priority, salt=salt)

    def resume(self, id, prompt, params, produced: Mapping[int, tuple[int, ...]], *, priority=0, salt="") -> None:
        if params.json_schema is not None and params.json_schema.get("type") == "nonsense":
            raise ValueError("this schema is nonsense")
        for index, before in produced.items():
            one = Running(id, index, tuple(prompt), params, answer(prompt, params, index)[0])
            if list(before) != list(one.tokens[: len(before)]) or len(before) >= len(one.tokens):
                raise ValueError(f"{before} are no beginning of the answer, or all of it")
            for _ in before:
                one.take()
            self.waiting.append(one)

    def cancel(self, id: str) -> bool:
        had = len(self.waiting) + len(self.running)
        self.waiting = [one for one in self.waiting if one.id != id]
        self.running = [one for one in self.running if one.id != id]
        gone = had - len(self.waiting) - len(self.running)
        self.cancelled += gone
        return bool(gone)

    def step(self) -> list[Delta]:
        while self.waiting and len(self.running) < self._limits.max_sequences:
            self.running.append(self.waiting.pop(0))
        time.sleep(self.pace)
        deltas = []
        for one in self.running:
            for fault in self.faults:
                if fault.mark in one.prompt and fault.at == one.done and fault.strikes(self.folder):
                    fault.happen()
            deltas.append(one.take())
        chunks = tuple(
            Chunk(f"{one.id}.{one.index}", one.done, (1,), tuple(range(9, 9 + one.done)), True) for one in self.running
        )
        self.finished += sum(one.done == len(one.tokens) for one in self.running)
        self.running = [one for one in self.running if one.done < len(one.tokens)]
        self.steps += 1
        for observer in self.observers:
            observer(StepReport(Step(self.steps, chunks), 0.0, self.pace, len(chunks), 0, load=self.load()))
        return deltas

    def load(self) -> Load:
        size = sum(len(one.prompt) + len(one.tokens) for one in self.waiting)
        waiting, running = len(self.waiting), len(self.running)
        return Load(
            waiting, size, running, 4096, 4096 - running, 0, self.steps, 0, 0, 0, 0, 0, self.finished, self.cancelled
        )


def build(on_progress=None, loading: Sequence[Fault] = (), **options) -> StandIn:
    """A stand-in; `loading` faults strike while it loads, those of mark 1 before a first progress, 2 after it."""
    for fault in loading:
        if fault.mark == 2:
            on_progress(0.5, "halfway")
        if fault.strikes(options["folder"]):
            fault.happen()
    if on_progress is not None:
        on_progress(1.0, "stands in")
    return StandIn(**options)


def build_unless_broken(folder: str, **options) -> StandIn:
    """One that can be built until somebody breaks its model."""
    if (Path(folder) / "broken").exists():
        raise FileNotFoundError(f"there is no model in {folder} any more")
    return StandIn(folder=folder, **options)


def build_light(**options) -> StandIn:
    """One that says what heavy modules its process has loaded."""
    if heavy := {"torch", "numpy", "transformers", "fastapi"} & {name.split(".")[0] for name in sys.modules}:
        raise RuntimeError(f"the child has loaded {heavy}")
    return StandIn(**options)


def build_parent(pids: str, **options) -> StandIn:
    """One with a child of its own, that outlives it and holds its pipes."""
    if not (child := os.fork()):
        time.sleep(30)
        os._exit(0)
    Path(pids).write_text(str(child))
    return StandIn(**options)


def missing(folder: str) -> StandIn:
    """What a folder that is not there does."""
    raise FileNotFoundError(f"there is no model in {folder}")
