"""What both endpoints do with a request: read it, hold it to the limits, let it run, and write what comes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from labkit.serve.engine import Backend, Info, SamplingParams
from labkit.serve.server.answering import Answer, Shape, Tally
from labkit.serve.server.asked import Asked
from labkit.serve.server.body import Gone, read_body, understood
from labkit.serve.server.errors import ApiError, JsonResponse, refused, shortened
from labkit.serve.server.metrics import Metrics
from labkit.serve.server.prompts import PromptReader, answer_tokens
from labkit.serve.server.run import Run, submit
from labkit.serve.server.schemas import need_schema
from labkit.serve.server.settings import Settings
from labkit.serve.server.stream import EventStream, unless_gone
from labkit.serve.server.text import Text

Kind = TypeVar("Kind", bound=Asked)
READ_INLINE = 1 << 15  # bytes of a body; longer ones are read in a thread
THREADS = 2  # for long texts; they wait for each other, so that they cannot take the whole machine


class Service:
    """The common ground of the endpoints.

    Args:
        backend: makes the answers.
        text: the tokenizer.
        settings: the limits.
        metrics: the books.
    """

    def __init__(self, backend: Backend, text: Text, settings: Settings, metrics: Metrics) -> None:
        self.backend, self.text, self.settings, self.metrics = backend, text, settings, metrics
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self.reader = PromptReader(text, settings, self.threads)

    @property
    def info(self) -> Info:
        """What the backend serves."""
        return self.backend.info

    @property
    def model(self) -> str:
        """The name that requests must give."""
        return self.settings.name or self.info.name

    async def asked(self, kind: type[Kind], request: Request) -> Kind:
        """What a request asks. Raises ApiError if that is not clear, or asks another model."""
        data = await read_body(request.headers, request.receive, self.settings)
        work = partial(understood, kind, data, self.settings.max_depth)
        inline = len(data) <= READ_INLINE
        asked = work() if inline else await asyncio.get_running_loop().run_in_executor(self.threads, work)
        self.need_model(asked.model)
        if asked.stream_options is not None and not asked.stream:
            raise refused("stream_options needs stream: true", "stream_options", "invalid_value")
        form = asked.response_format
        if form is not None and form.type != "text":
            schema = form.json_schema.schema_ if form.type == "json_schema" else {"type": "object"}
            await need_schema(schema, self.threads)
        return asked

    def need_model(self, name: str) -> None:
        """Raises ApiError (404) for a model that is not served."""
        if name != self.model:
            words = f"there is no model {shortened(name, 80)!r}; this server has {self.model!r}"
            raise ApiError(404, words, param="model", code="model_not_found")

    def params(
        self,
        asked: Asked,
        prompt: int,
        max_tokens: int | None,
        param: str = "max_tokens",
        *,
        usual: int | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """How a prompt of so many tokens is continued. Raises ApiError (400)."""
        form = asked.response_format
        highest = max(asked.stop_token_ids or (), default=0)
        if highest >= self.info.vocab_size:
            raise refused(f"stop_token_ids has {highest}; the model knows 0 to {self.info.vocab_size - 1}",
                          "stop_token_ids")  # fmt: skip
        try:
            return SamplingParams(
                max_tokens=answer_tokens(max_tokens, usual, prompt, self.info, self.settings, param),
                temperature=1.0 if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else asked.top_p,
                top_k=max(asked.top_k or 0, 0),
                seed=asked.seed,
                n=asked.n or 1,
                stop=tuple(asked.stop or ()),
                stop_token_ids=tuple(asked.stop_token_ids or ()),
                ignore_eos=bool(asked.ignore_eos),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                json_schema=form.json_schema.schema_ if form is not None and form.type == "json_schema" else None,
                json_object=form is not None and form.type == "json_object",
            )
        except ValueError as error:
            raise refused(str(error)) from None

    def need_choices(self, prompts: int, n: int) -> None:
        """Raises ApiError (400) for more answers than one request may have."""
        if prompts * n > self.settings.max_choices:
            words = f"{prompts} prompts with n {n} are {prompts * n} answers; {self.settings.max_choices} are allowed"
            raise refused(words, "n" if n > 1 else "prompt", "too_many_choices")

    async def answer(
        self,
        request: Request,
        asked: Asked,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        shape: Shape,
        prefix: str,
        counts: bool = True,
    ) -> Response:
        """Let the prompts run, and write the answers as they were asked for.

        Args:
            params: of each prompt.
            prefix: of the answer's id.
            counts: whether generated tokens are part of the answer.
        """
        if await request.is_disconnected():
            raise Gone
        n = asked.n or 1
        sizes = tuple(map(len, prompts))
        watch = self.metrics.watch(sum(sizes), n)
        salt = f"{request.scope.get('caller', '')}:{asked.cache_salt or ''}"
        streams = submit(self.backend, prompts, params, salt, self.settings.retry_seconds)
        run = Run(streams, n, self.settings.max_unread if asked.stream else None, watch.saw)
        tally = Tally(sizes, n, counts)
        answer = Answer(f"{prefix}-{secrets.token_hex(12)}", self.model, run, shape, tally, self.settings.retry_seconds)
        if not asked.stream:
            return JsonResponse(await unless_gone(request.receive, answer.whole()))
        options = asked.stream_options
        events = answer.events(
            bool(options and options.include_usage), bool(options and options.continuous_usage_stats)
        )
        return EventStream(events, run.cancel, self.settings.write_seconds)
