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
from labkit.serve.engine.ahead import Ahead
from labkit.serve.engine.backend import Info
from labkit.serve.engine.delta import Delta, Result, TokenLogprob
from labkit.serve.engine.grammar import Grammars
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.reporter import Reporter
from labkit.serve.engine.request import Continuation, Request
from labkit.serve.engine.stops import text_of
from labkit.serve.engine.tokens import Tokens
from labkit.serve.engine.vocabulary import Vocabulary
from labkit.serve.scheduler import Chunk, Limits, Load, Scheduler, Step
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
        runner: computes chunks; by default made of the model. graphs: whether on CUDA steps are replayed from CUDA
            graphs; by default they are. ahead: whether a step is sent to the device before the last one's tokens
            are on the host; by default on CUDA.
        clock: seconds, for times and arrivals. name: of the model.

    `observers` are called with a `StepReport` after each step; `running` are the open continuations by the id of their
    sequence. Raises ValueError for limits beyond the model's context.
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
        ahead: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "model",
    ) -> None:
        if runner is None:
            from labkit.serve.engine.loading import runner_of

            runner, limits = runner_of(model, limits, graphs)
        if limits is None:
            raise ValueError("a runner is given and no limits; give those that it was made for")
        self.model, self.runner, self.limits, self.clock, self.name = model, runner, limits, clock, name
        self.vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        own = self.vocabulary.eos_token_ids if self.vocabulary else ()
        self.eos_token_ids = tuple(own if eos_token_ids is None else eos_token_ids)
        check_tokens("eos_token_ids", self.eos_token_ids, runner.vocab_size)
        self.scheduler = Scheduler(limits)
        self.reporter = Reporter()
        self.observers = self.reporter.observers
        self._requests: dict[str, Request] = {}
        self.running: dict[str, Continuation] = {}
        self.news: list[Delta] = []  # of what ended before its first step
        self.particular: set[str] = set()  # requests for which no step is computed ahead
        ahead = getattr(runner, "ahead", False) if ahead is None else ahead
        self.ahead = Ahead(self) if ahead else None
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
        return bool(self._requests or self.news)

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
        self.need_new(request.id)
        self.scheduler.add(self.line(request, 0), insist=insist)
        self.know(request)
        first = request.begin(0)
        self.running[first.id] = first

    def need_new(self, id: str) -> None:
        """Raise ValueError for an id in use."""
        if id in self._requests:
            raise ValueError(f"a request {id!r} waits or runs already; ids must differ")

    def know(self, request: Request) -> None:
        """A request is under way."""
        self._requests[request.id] = request
        if request.particular:
            self.particular.add(request.id)

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
        from labkit.serve.engine.resume import resume

        resume(self, self.prepare(id, prompt, params, priority=priority, salt=salt), produced)

    def line(self, request: Request, index: int) -> Line:
        """The sequence of a continuation that has no token yet."""
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
        self.news = [delta for delta in self.news if delta.id != id]
        for continuation in tuple(request.open.values()):
            self.scheduler.cancel(continuation.id)
            self.forget(continuation, "cancelled")
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
        news, self.news = self.news, []
        if self.ahead is not None:
            if not self.particular:
                return news + self.ahead.step()
            news += self.ahead.land()
        began = self.clock()
        step = self.scheduler.schedule(began)
        if not step:
            return news
        self.note(step)
        self.runner.copy(step.copies)
        return news + self.compute(step, step.chunks, began)

    def note(self, step: Step) -> None:
        """Remember what those that start found in the cache."""
        for request, cached in [(self.running[id].request, cached) for id, cached in step.cached.items()]:
            request.cached_tokens = request.cached_tokens or min(cached, len(request.prompt))

    def compute(self, step: Step, chunks: Sequence[Chunk], began: float) -> list[Delta]:
        """Run a step's chunks and bring the books up to date."""
        decode = self.reporter.decoding(step, self.running)
        tokens, failed, news = Tokens(self), {}, []
        tokens.compute(chunks, failed)
        for id, wrong in failed.items():
            if id in self.running:
                news += self.fail(self.running[id].request, wrong)
        running, chosen = self.running, tokens.chosen
        if failed:
            chosen = {id: token for id, token in chosen.items() if id in running}
        self.scheduler.update(step, chosen)
        for id, token in chosen.items():
            if id in running:
                news += self.tell(running[id], token, tokens.logprobs.get(id, ()))
        self.report(step, began, decode)
        return news

    def report(self, step: Step, began: float, decode: int) -> None:
        """Tell the observers, if there are any."""
        self.reporter.tell(self, step, began, decode)

    def fork(self, request: Request) -> list[Continuation]:
        """The other continuations of a request, at the step that samples its first token; for `engine.tokens`."""
        request.forked = True
        new = [request.begin(index) for index in range(1, request.params.n)]
        self.scheduler.fork(request.open[0].id, [one.id for one in new])
        self.running.update((one.id, one) for one in new)
        if not request.particular:
            self.particular.discard(request.id)
        return new

    def tell(self, continuation: Continuation, token: int, logprobs: tuple[TokenLogprob, ...] = ()) -> Sequence[Delta]:
        """A token has come: what is new."""
        request = continuation.request
        try:
            text, reason = continuation.push(token)
        except ValueError as error:  # of its grammar
            return self.fail(request, str(error))
        told = None
        if not request.told and continuation.index == 0:
            request.told, told = True, request.prompt_logprobs and tuple(request.prompt_logprobs)
        if reason is not None:
            if continuation.id in self.scheduler.sequences:
                self.scheduler.finish(continuation.id)
            self.forget(continuation, reason)
        index, cached = continuation.index, request.cached_tokens
        return (Delta(request.id, index, (token,), text, logprobs, told, reason, None, cached),)

    def fail(self, request: Request, wrong: str) -> list[Delta]:
        """End a whole request: what is not open yet ends too, and nobody finds its blocks."""
        indices = [*request.open, *(() if request.forked else range(1, request.params.n))]
        for continuation in tuple(request.open.values()):
            if continuation.id in self.scheduler.sequences:
                self.scheduler.finish(continuation.id, forget=True)
            self.forget(continuation, "error")
        return [
            Delta(request.id, index, finish_reason="error", error=wrong, cached_tokens=request.cached_tokens)
            for index in indices
        ]

    def forget(self, continuation: Continuation, reason: str) -> None:
        """A continuation has ended."""
        request = continuation.request
        self.running.pop(continuation.id, None)
        self.reporter.end(continuation.id, reason)
        del request.open[continuation.index]
        if not request.open:
            self._requests.pop(request.id, None)
            self.particular.discard(request.id)

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
        there = self.scheduler.sequences
        open_now = {one.id for request in self._requests.values() for one in request.open.values()}
        gone = [one for one in self.running.values() if one.id not in there]
        landing = self.ahead is not None and all(self.ahead.owns(one) for one in gone)
        if not set(there) <= set(self.running) == open_now or (gone and not landing):
            raise RuntimeError("the engine and its scheduler know of different sequences")
