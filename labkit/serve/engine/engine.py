"""The engine: one step is schedule, run, sample, tell.

Company changes nothing in an answer: a row whose logits are no numbers ends its own request; a forward pass that raises
is tried again by halves until the request at fault is found; draws depend on the request's seed and nothing else.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.serve.engine.admission import check_prompt, check_tokens
from labkit.serve.engine.backend import Info
from labkit.serve.engine.delta import Delta, Result
from labkit.serve.engine.grammar import Grammars
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.reporter import Reporter
from labkit.serve.engine.request import Continuation, Request
from labkit.serve.engine.stops import text_of
from labkit.serve.engine.tokens import Tokens
from labkit.serve.engine.vocabulary import Vocabulary
from labkit.serve.scheduler import Limits, Load, Scheduler
from labkit.serve.scheduler import Sequence as Line

if TYPE_CHECKING:
    from labkit.nn.model import Transformer
    from labkit.serve.engine.runner import Runner

GREEDY = SamplingParams()


class Engine:
    """Answers many requests at once, on one thread.

    Args:
        model: in evaluation mode; None if a runner is given.
        tokenizer: of transformers or `tokenizers`; without one, prompts are tokens and answers have no text.
        limits: sizes of cache, steps and queue; by default what `default_limits` makes of the model.
        eos_token_ids: that end an answer; by default the tokenizer's.
        runner: computes chunks; by default made of the model. graphs: whether on CUDA decoding steps are replayed from
            CUDA graphs; by default they are.
        clock: seconds, for times and arrivals. name: of the model.

    `observers` are called with a `StepReport` after each step. Raises ValueError for limits beyond the model's context.
    """

    def __init__(
        self,
        model: Transformer | None,
        tokenizer: Any = None,
        limits: Limits | None = None,
        *,
        eos_token_ids: Iterable[int] | None = None,
        runner: Runner | None = None,
        graphs: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "model",
    ) -> None:
        if runner is None:
            from labkit.serve.engine.loading import runner_of

            runner, limits = runner_of(model, limits, graphs)
        if limits is None:
            raise ValueError("a runner is given without limits; give the limits that it was made for")
        self.model, self.runner, self.limits, self.clock, self.name = model, runner, limits, clock, name
        self.vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        own = self.vocabulary.eos_token_ids if self.vocabulary else ()
        self.eos_token_ids = tuple(own if eos_token_ids is None else eos_token_ids)
        check_tokens("eos_token_ids", self.eos_token_ids, runner.vocab_size)
        self.scheduler = Scheduler(limits)
        self._reporter = Reporter()
        self.observers = self._reporter.observers
        self._requests: dict[str, Request] = {}
        self._running: dict[str, Continuation] = {}  # by the id of its sequence
        self._news: list[Delta] = []  # of what ended before its first step
        self._grammars: Grammars | None = None

    @classmethod
    def from_pretrained(cls, folder, **options: Any) -> Engine:
        """An engine for a Hugging Face folder; see `engine.loading.load` for the options."""
        from labkit.serve.engine.loading import load

        return load(folder, **options)

    # --- what comes and goes

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._requests or self._news)

    def load(self) -> Load:
        """How busy it is."""
        return self.scheduler.load()

    @property
    def info(self) -> Info:
        """What is served."""
        limits, layers, experts, sparse = self.limits, 0, 0, ()
        if self.model is not None:
            config = self.model.config
            layers, experts = config.num_layers, config.moe.num_experts if config.moe else 0
            sparse = tuple(range(config.num_dense_layers, layers)) if experts else ()
        return Info(
            self.name, self.runner.vocab_size, limits.max_context, layers, experts, sparse, self.eos_token_ids,
            limits.num_blocks, limits.block_size, limits.max_sequences,
        )  # fmt: skip

    def prepare(
        self,
        id: str,
        prompt: Sequence[int] | str,
        params: SamplingParams = GREEDY,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> Request:
        """Check a request and make it ready for `enter`; needs no step to stand still. ValueErrors as in `add`."""
        if isinstance(prompt, str):
            if self.vocabulary is None:
                raise ValueError("this engine has no tokenizer; give the prompt as token ids")
            prompt = self.vocabulary.encode(prompt)
        prompt = check_prompt(prompt, params, self.limits, self.runner.vocab_size)
        if params.stop and self.vocabulary is None:
            raise ValueError("this engine has no tokenizer, so no text to look for stop in; give stop_token_ids")
        ends = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else self.eos_token_ids)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        matcher = self.grammars().matcher(params) if params.constrained else None
        text = text_of(self.vocabulary, prompt)
        return Request(id, prompt, params, seed, ends, priority, salt, self.clock(), text, matcher)

    def enter(self, request: Request, *, insist: bool = False) -> None:
        """Let a prepared request wait for its turn. Raises ValueError for an id in use, `Full` unless you `insist`."""
        if request.id in self._requests:
            raise ValueError(f"a request {request.id!r} waits or runs already; ids must differ")
        self.scheduler.add(self._line(request, 0), insist=insist)
        self._requests[request.id] = request
        first = request.begin(0)
        self._running[first.id] = first

    def add(
        self,
        id: str,
        prompt: Sequence[int] | str,
        params: SamplingParams = GREEDY,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> None:
        """A new request.

        Args:
            id: unlike that of any other request under way.
            prompt: tokens, or text for the tokenizer.
            priority: lower goes first; salt: requests with different salts share no cached blocks.

        Raises ValueError for what can never be answered (too long, unknown tokens, an unusable schema), and `Full` if
        too many wait.
        """
        self.enter(self.prepare(id, prompt, params, priority=priority, salt=salt))

    def resume(
        self,
        id: str,
        prompt: Sequence[int] | str,
        params: SamplingParams,
        produced: Mapping[int, Sequence[int]],
        *,
        priority: int = 0,
        salt: str = "",
    ) -> None:
        """Go on with a request that another engine had begun: the rest is what it would have been there.

        Args:
            params: the same; if it draws, with the seed that was used.
            produced: the tokens so far of each continuation that has not ended; they are fed again, not told again.

        Never `Full`. Raises ValueError as `add` does, and for tokens that cannot be this request's.
        """
        request = self.prepare(id, prompt, params, priority=priority, salt=salt)
        if not produced or not all(type(index) is int and 0 <= index < params.n for index in produced):
            raise ValueError(
                f"produced names the continuations {list(produced)}; name those of 0 to {params.n - 1} open"
            )
        if not any(produced.values()) and len(produced) == params.n:
            return self.enter(request, insist=True)
        if params.seed is None and not params.greedy:
            raise ValueError("the request draws and has no seed; resume it with the seed that was used before")
        if id in self._requests:
            raise ValueError(f"a request {id!r} waits or runs already; ids must differ")
        self._requests[id] = request
        request.forked, request.told = True, bool(produced.get(0, True))
        try:
            for continuation in [request.begin(index) for index in produced]:
                self._go_on(continuation, tuple(produced[continuation.index]))
        except ValueError:
            self.cancel(id)
            raise

    def _go_on(self, continuation: Continuation, tokens: tuple[int, ...]) -> None:
        request, index = continuation.request, continuation.index
        check_tokens("produced", tokens, self.runner.vocab_size)
        if reason := continuation.replay(tokens):  # its last news was lost
            self._news.append(Delta(request.id, index, finish_reason=reason))
            self._forget(continuation, reason)
            return
        line = self._line(request, index)
        line.tokens.extend(tokens)
        self.scheduler.add(line, insist=True)
        self._running[continuation.id] = continuation

    def _line(self, request: Request, index: int) -> Line:
        params = request.params
        return Line(
            f"{request.id}.{index}", request.prompt, params.max_tokens, request.priority, request.arrived,
            request.salt, reuse=not request.reads_prompt,
        )  # fmt: skip

    def cancel(self, id: str) -> bool:
        """Drop a request: its blocks are free at once, and no delta of it follows. False if it has ended already."""
        request = self._requests.get(id)
        if request is None:
            return False
        self._news = [delta for delta in self._news if delta.id != id]
        for continuation in tuple(request.open.values()):
            self.scheduler.cancel(continuation.id)
            self._forget(continuation, "cancelled")
        return True

    def grammars(self) -> Grammars:
        """What makes grammars for this tokenizer; the first call takes up to a second. ValueError without one."""
        if self._grammars is None:
            if self.vocabulary is None:
                raise ValueError("this engine has no tokenizer, so it cannot tell which tokens make JSON")
            self._grammars = Grammars(self.vocabulary, self.runner.vocab_size, self.eos_token_ids)
        return self._grammars

    # --- one step

    def step(self) -> list[Delta]:
        """Schedule, run, sample: what is new of every continuation that moved; nothing if none did.

        Raises only if the device itself has failed, so that whoever runs the engine replaces it.
        """
        began = self.clock()
        step = self.scheduler.schedule(began)
        news, self._news = self._news, []
        if not step:
            return news
        for id, cached in step.cached.items():
            request = self._running[id].request
            request.cached_tokens = request.cached_tokens or min(cached, len(request.prompt))
        self._reporter.begin(step, self._running)
        self.runner.copy(step.copies)
        failed: dict[str, str] = {}  # sequence: what went wrong
        tokens = Tokens(self)
        tokens.compute(step.chunks, failed)
        for id, wrong in failed.items():
            if id in self._running:
                news += self._fail(self._running[id].request, wrong)
        running = self._running
        self.scheduler.update(step, {id: token for id, token in tokens.chosen.items() if id in running})
        for id, token in tokens.chosen.items():
            if id in running:
                news.append(self._told(running[id], token, tokens))
        self._reporter.tell(step, began, self.clock(), self.runner, self.load)
        return news

    def fork(self, request: Request) -> list[Continuation]:
        """The other continuations of a request, at the step that samples its first token; for `engine.tokens`."""
        request.forked = True
        new = [request.begin(index) for index in range(1, request.params.n)]
        self.scheduler.fork(request.open[0].id, [one.id for one in new])
        self._running.update((one.id, one) for one in new)
        return new

    def _told(self, continuation: Continuation, token: int, tokens: Tokens) -> Delta:
        request, id = continuation.request, continuation.id
        text, reason = continuation.push(token)
        logprobs = tokens.logprobs.get(id, ())
        told = None
        if not request.told and continuation.index == 0:
            request.told, told = True, request.prompt_logprobs and tuple(request.prompt_logprobs)
        delta = Delta(
            request.id, continuation.index, (token,), text, logprobs, told, reason, None, request.cached_tokens
        )
        if reason is not None:
            self.scheduler.finish(id)
            self._forget(continuation, reason)
        return delta

    def _fail(self, request: Request, wrong: str) -> list[Delta]:
        """End a whole request: what is not open yet ends too, and nobody finds its blocks."""
        indices = [*request.open, *(() if request.forked else range(1, request.params.n))]
        for continuation in tuple(request.open.values()):
            self.scheduler.finish(continuation.id, forget=True)
            self._forget(continuation, "error")
        return [
            Delta(request.id, index, finish_reason="error", error=wrong, cached_tokens=request.cached_tokens)
            for index in indices
        ]

    def _forget(self, continuation: Continuation, reason: str) -> None:
        request = continuation.request
        self._running.pop(continuation.id, None)
        self._reporter.end(continuation.id, reason)
        del request.open[continuation.index]
        if not request.open:
            self._requests.pop(request.id, None)

    # --- whole answers

    def generate(
        self, prompts: Iterable[Sequence[int] | str], params: SamplingParams | Sequence[SamplingParams] = GREEDY
    ) -> list[Result]:
        """Answer these and return when all are done, in their order.

        Args:
            params: for all, or one for each.

        Raises ValueError as `add` does, before anything is computed, and while other requests are under way.
        """
        from labkit.serve.engine.generate import generate

        return generate(self, prompts, params)

    def check(self) -> None:
        """Raise RuntimeError if the books contradict themselves; slow, made for tests."""
        self.scheduler.check()
        open_now = {one.id for request in self._requests.values() for one in request.open.values()}
        if not set(self.scheduler.sequences) == set(self._running) == open_now:
            raise RuntimeError("the engine and its scheduler know of different sequences")
