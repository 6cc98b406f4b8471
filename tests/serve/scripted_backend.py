"""A backend of canned answers: no model, real waiting, and books that show every block that is not given back.

What follows a prompt depends on the prompt, the seed and the continuation's number alone; `expected` says it. Prompts
that hold a `POISON` token fail as a row of NaN would.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.serve.engine import Delta, Health, Info, SamplingParams, StepReport, Stream, TokenLogprob, Unavailable
from labkit.serve.scheduler import Chunk, Full, Load, Step
from labkit.serve.server.text import Text

FOLDER = Path(__file__).parents[2] / "data" / "checkpoints" / "four-domains"
TEXT = Text.from_folder(FOLDER)
WORDS = TEXT.encode([" a b c d e the of in and to is x y z = ( ) 1 2 3 , .\n"], special=False)[0]
JSON = TEXT.encode(['{"answer": 42}'], special=False)[0]
POISON = TEXT.encode([" poison"], special=False)[0][-1]
END = 0


def token(prompt: Sequence[int], params: SamplingParams, index: int, at: int) -> int:
    """Token `at` of a continuation."""
    if params.constrained:
        return JSON[at] if at < len(JSON) else END
    key = repr((tuple(prompt), params.seed, index if params.temperature else 0, at)).encode()
    draw = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    return END if draw % 97 == 0 and not params.ignore_eos else WORDS[draw % len(WORDS)]


def logprob(id: int, at: int) -> float:
    """What the books say of a token at a place."""
    return -math.log(2 + (id * 31 + at * 7) % 97)


def told(id: int, at: int, top: int) -> TokenLogprob:
    """A token with alternatives, itself the best."""
    others = [id, *(other for other in range(4000, 4000 + top) if other != id)][:top]
    alternatives = tuple((o, TEXT.token_text(o), logprob(id, at) - k) for k, o in enumerate(others))
    return TokenLogprob(id, TEXT.token_text(id), logprob(id, at), alternatives)


def pieces(prompt: Sequence[int], params: SamplingParams, index: int) -> Iterator[tuple[int, str, str | None]]:
    """Tokens, new texts and finish of one continuation, step by step."""
    known, tail, shown = "", [], 0
    hold = max((len(stop) for stop in params.stop), default=1) - 1
    for at in range(params.max_tokens):
        id = token(prompt, params, index, at)
        ended = (id == END and not params.ignore_eos) or id in params.stop_token_ids
        tail = tail if ended else [*tail, id]
        text = TEXT.decode(tail)
        if "�" not in text:
            known, tail = known + text, []
        text = known + TEXT.decode(tail)
        cuts = [found for stop in params.stop if (found := text.find(stop)) >= 0]
        finish = "stop" if ended or cuts else "length" if at + 1 == params.max_tokens else None
        text = text[: min(cuts)] if cuts else known if finish is None else text
        ready = text if finish else text[: len(text) - hold]
        yield id, ready[shown:], finish
        shown = max(shown, len(ready))
        if finish:
            return


def expected(prompt: str | Sequence[int], params: SamplingParams, index: int = 0) -> str:
    """The text of a continuation."""
    ids = TEXT.encode([prompt])[0] if isinstance(prompt, str) else prompt
    return "".join(text for _, text, _ in pieces(ids, params, index))


@dataclass
class Held:
    """One request under way."""

    stream: Stream
    prompt: tuple[int, ...]
    params: SamplingParams
    blocks: int = 0
    task: asyncio.Task | None = None


@dataclass
class Scripted:
    """See the module.

    Args:
        pause: seconds between tokens.
        num_blocks: of 16 tokens; max_waiting: requests without blocks before `Full`.
    """

    pause: float = 0.0
    num_blocks: int = 256
    max_waiting: int = 64
    max_context: int = 512
    load_seconds: float = 0.0
    held: dict[str, Held] = field(default_factory=dict)
    running: int = 0
    most_running: int = 0
    finished: int = 0
    cancelled: int = 0
    restarts: int = 0
    salts: list[str] = field(default_factory=list)
    freed_late: list[str] = field(default_factory=list)
    free: int = 0
    started = draining = closed = False
    replacing: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.free = self.num_blocks
        self._numbers = itertools.count()
        self._listeners: list[Callable[[StepReport], None]] = []
        self._waiting: list[Held] = []
        self._steps = 0

    @property
    def info(self) -> Info:
        if not self.started:
            raise RuntimeError("not started")
        return Info("scripted", 4096, self.max_context, 2, 4, (0, 1), (END,), self.num_blocks, 16, 64)

    async def start(self) -> None:
        await asyncio.sleep(self.load_seconds)
        self.started = True

    def submit(self, prompt_ids, params, *, priority: int = 0, salt: str = "") -> Stream:
        if not self.health().ready:
            raise Unavailable(self.health().reason)
        need = -(-(len(prompt_ids) + params.max_tokens * params.n) // 16)
        if not prompt_ids or len(prompt_ids) + params.max_tokens > self.max_context or need > self.num_blocks:
            raise ValueError(f"{len(prompt_ids)} tokens of prompt and {params.max_tokens} new ones never fit")
        if len(self._waiting) >= self.max_waiting:
            raise Full(f"{len(self._waiting)} requests wait; try again later")
        self.salts.append(salt)
        stream = Stream(str(next(self._numbers)), params.n, self._cancel)
        held = self.held[stream.id] = Held(stream, tuple(prompt_ids), params)
        self._waiting.append(held)
        self._admit()
        return stream

    def _admit(self) -> None:
        while self._waiting:
            held = self._waiting[0]
            need = -(-(len(held.prompt) + held.params.max_tokens * held.params.n) // 16)
            if need > self.free:
                return
            self._waiting.pop(0)
            held.blocks = need
            self.free -= need
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            held.task = asyncio.get_running_loop().create_task(self._run(held))

    async def _run(self, held: Held) -> None:
        stream, prompt, params = held.stream, held.prompt, held.params
        scripts = {index: pieces(prompt, params, index) for index in range(params.n)}
        for at in itertools.count():
            await asyncio.sleep(self.pause)
            if self.replacing is not None:
                await self.replacing.wait()
            if POISON in prompt and at == 1:
                self._end(held)
                stream.end("error", "the logits were not finite")
                return
            self._report(held, at)
            news = [self._delta(held, index, at, *next(script)) for index, script in scripts.items()]
            for delta in news:
                if delta.finish_reason:
                    del scripts[delta.index]
            if not scripts:
                self._end(held)
            for delta in news:
                stream.feed(delta)
            if not scripts:
                return

    def _delta(self, held: Held, index: int, at: int, id: int, text: str, finish: str | None) -> Delta:
        params, prompt = held.params, held.prompt
        logprobs = () if params.logprobs is None else (told(id, len(prompt) + at, params.logprobs),)
        of_prompt = None
        if params.prompt_logprobs is not None and index == 0 and at == 0:
            of_prompt = (None, *(told(id, k, params.prompt_logprobs) for k, id in enumerate(prompt) if k))
        return Delta(held.stream.id, index, (id,), text, logprobs, of_prompt, finish, None, len(prompt) // 16 * 16)

    def _report(self, held: Held, at: int) -> None:
        self._steps += 1
        chunk = Chunk(f"{held.stream.id}.0", len(held.prompt) + at, (1,), (), True)
        report = StepReport(Step(self._steps, (chunk,)), 0.0, 0.001, 1, 0, ((1, 0, 1, 0), (0, 2, 0, 0)))
        for listener in self._listeners:
            listener(report)

    def _cancel(self, id: str) -> None:
        if id in self.held:
            self.cancelled += 1
            held = self.held[id]
            if held.task is not None:
                held.task.cancel()
            self._end(held, done=False)

    def _end(self, held: Held, done: bool = True) -> None:
        if self.held.pop(held.stream.id, None) is None:
            return
        self.finished += done
        if held in self._waiting:
            self._waiting.remove(held)
        else:
            self.running -= 1
            self.free += held.blocks
        self._admit()

    def load(self) -> Load:
        tokens = sum(len(held.prompt) + held.params.max_tokens for held in self._waiting)
        counted = (self._steps, self._steps, 0, 0, 3, 1, self.finished, self.cancelled)
        return Load(len(self._waiting), tokens, self.running, self.num_blocks, self.free, 0, *counted)

    def health(self) -> Health:
        reason = "" if self.started else "the model is loading"
        if self.replacing is not None:
            reason = "the worker is being replaced"
        ready = self.started and not self.draining and self.replacing is None
        return Health(not self.closed, ready, self.draining, self.restarts, reason)

    def die(self) -> None:
        """The worker is gone: nothing moves and nothing is accepted until `come_back`."""
        self.replacing = asyncio.Event()
        self.restarts += 1

    def come_back(self) -> None:
        """All go on where they were."""
        replacing, self.replacing = self.replacing, None
        replacing.set()

    def subscribe(self, listener: Callable[[StepReport], None]) -> None:
        self._listeners.append(listener)

    async def drain(self, seconds: float) -> int:
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                while self.held:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass
        left = list(self.held.values())
        for held in left:
            held.stream.end("cancelled")
            self._cancel(held.stream.id)
        return len(left)

    async def close(self) -> None:
        self.closed = True
        await self.drain(0)
