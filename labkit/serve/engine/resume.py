"""Going on with a request that another engine had begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.serve.engine.admission import check_tokens
from labkit.serve.engine.delta import Delta
from labkit.serve.engine.request import Continuation, Request

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine


def resume(engine: Engine, request: Request, produced: Mapping[int, Sequence[int]]) -> None:
    """See `Engine.resume`; the request is prepared and has no continuation yet."""
    params = request.params
    if not produced or not all(type(index) is int and 0 <= index < params.n for index in produced):
        raise ValueError(f"produced names the continuations {list(produced)}; name those of 0 to {params.n - 1} open")
    if not any(produced.values()) and len(produced) == params.n:
        return engine.enter(request, insist=True)
    if params.seed is None and not params.greedy:
        raise ValueError("the request draws and has no seed; resume it with the seed that was used before")
    engine.need_new(request.id)
    request.forked, request.told = True, bool(produced.get(0, True))
    engine.know(request)
    try:
        for continuation in [request.begin(index) for index in produced]:
            _go_on(engine, continuation, tuple(produced[continuation.index]))
    except ValueError:
        engine.cancel(request.id)
        raise


def _go_on(engine: Engine, continuation: Continuation, tokens: tuple[int, ...]) -> None:
    request, index = continuation.request, continuation.index
    check_tokens("produced", tokens, engine.runner.vocab_size)
    if reason := continuation.replay(tokens):  # its last news was lost
        engine.news.append(Delta(request.id, index, finish_reason=reason))
        engine.forget(continuation, reason)
        return
    line = engine.line(request, index)
    line.tokens.extend(tokens)
    engine.scheduler.add(line, insist=True)
    engine.running[continuation.id] = continuation
