"""One request on its way, and each of its continuations: what a new token means for its text and its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from labkit.serve.engine.delta import TokenLogprob
from labkit.serve.engine.grammar import Matcher
from labkit.serve.engine.noise import draw_key, stream_key
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.sampler import Choice
from labkit.serve.engine.stops import ByteText, NoText, Stops, WindowText


@dataclass(eq=False, slots=True)
class Request:
    """What was asked, and what all continuations share.

    Args:
        id, prompt, params: as given, the prompt in tokens.
        seed: of the draws; ends: tokens that end an answer.
        priority, salt, arrived: as given, and when.
        text, matcher: at the beginning of an answer; each continuation gets a twin.

    `open` are the continuations that have not ended, by index. `prompt_logprobs` grow with the prompt, `told` once they
    are out.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    ends: frozenset[int]
    priority: int
    salt: str
    arrived: float
    text: ByteText | WindowText | NoText
    matcher: Matcher | None
    open: dict[int, Continuation] = field(init=False, default_factory=dict)
    forked: bool = field(init=False, default=False)
    cached_tokens: int = field(init=False, default=0)
    prompt_logprobs: list[TokenLogprob | None] | None = field(init=False, default=None)
    told: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.forked = self.params.n == 1
        self.prompt_logprobs = None if self.params.prompt_logprobs is None else [None]

    @property
    def reads_prompt(self) -> bool:
        """Whether logits of its prompt are still wanted."""
        return not self.told and self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)

    @property
    def particular(self) -> bool:
        """Whether its next step depends on the token itself, or needs more of the logits than a token."""
        params = self.params
        wants = params.constrained or params.logprobs is not None or params.prompt_logprobs is not None
        return wants or not self.forked

    def begin(self, index: int) -> Continuation:
        """A continuation that has no token yet."""
        matcher = None if self.matcher is None else self.matcher.twin()
        self.open[index] = new = Continuation(self, index, self.text.twin(), Stops(self.params.stop), matcher)
        return new


@dataclass(eq=False, slots=True)
class Continuation:
    """One answer as it grows.

    `id` is its sequence's in the scheduler; `plain` says that the best token is all that is wanted of its logits.
    """

    request: Request
    index: int
    text: ByteText | WindowText | NoText
    stops: Stops
    matcher: Matcher | None
    id: str = field(init=False)
    plain: bool = field(init=False)
    count: int = field(init=False, default=0)
    _key: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        params = self.request.params
        self.id = f"{self.request.id}.{self.index}"
        self.plain = params.greedy and params.logprobs is None and self.matcher is None
        self._key = stream_key(self.request.seed, self.index)

    def choice(self, number: int) -> Choice:
        """How its token of this number, from 0, is chosen."""
        params = self.request.params
        return Choice(params) if params.greedy else Choice(params, draw_key(self._key, number))

    def push(self, token: int) -> tuple[str, str | None]:
        """One more token: the text that may be shown now, and why the answer ends with it, or None."""
        request = self.request
        self.count += 1
        if token in request.ends:
            return self._rest(), "stop"
        text = self.stops.push(self.text.push(token))
        if self.stops.stopped:
            return text, "stop"
        if self.matcher is not None:
            self.matcher.push((token,))
            if self.matcher.ended:
                return text + self._rest(), "stop"
        if self.count >= request.params.max_tokens:
            text += self._rest()
            return text, "stop" if self.stops.stopped else "length"
        return text, None

    def replay(self, tokens: Iterable[int]) -> str | None:
        """Tokens whose text is out already; why the answer ended with them, or None."""
        reason = None
        for token in tokens:
            if reason is not None:
                raise ValueError(f"continuation {self.id!r} ended before the token {token} that it is said to have")
            _, reason = self.push(token)
        return reason

    def _rest(self) -> str:
        return self.stops.push(self.text.flush()) + self.stops.flush()
