"""Lab 14: more mistakes as learners make them, and the words for each; functions take a mistake's name first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.course.judge import Failure, Mistake


def events(wrong: str, chunks: Iterator[bytes]) -> Iterator[str]:
    """`events` with one thing wrong."""
    held, data = b"", []
    for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        for raw in lines:
            line = raw.rstrip() if wrong == "ends_stripped" else raw.removesuffix(b"\r")
            name, _, value = line.partition(b":")
            if name == b"data":
                value = line.lstrip(b"data: ") if wrong == "letters_stripped" else value.removeprefix(b" ")
                if wrong == "done_in_a_line" and value == b"[DONE]":
                    return
                data.append(value.decode())
            elif not (line.strip() if wrong == "looks_empty" else line) and data:
                text = "\n".join(data)
                if wrong != "data_kept":
                    data = []
                if text == "[DONE]":
                    return
                yield text


def until_stop(wrong: str, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
    """`until_stop` with one thing wrong."""
    held = ""
    for piece in pieces:
        held += piece
        seen = piece if wrong == "searches_the_piece" else held
        if wrong == "pattern":
            found = sorted(match.span()[::-1] for stop in stops if (match := re.search(stop, held)))
        else:
            found = sorted((held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in seen)
        if found:
            yield held[: found[0][1]]
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[-keep:] if wrong == "minus_zero" else held[len(held) - keep :]
    yield held


async def relay(wrong: str, engine: Any, prompt: str) -> AsyncIterator[str]:
    """`relay` with one thing wrong."""
    answer, before = engine.submit(prompt), None
    try:
        async for piece in answer:
            if wrong != "one_behind":
                yield f"data: {json.dumps({'text': piece})}\n\n"
            elif before is not None:
                yield f"data: {json.dumps({'text': before})}\n\n"
            before = piece
        if wrong == "one_behind" and before is not None:
            yield f"data: {json.dumps({'text': before})}\n\n"
        yield 'data: "[DONE]"\n\n' if wrong == "done_quoted" else "data: [DONE]\n\n"
    except RuntimeError as error:
        yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'server_error'}})}\n\n"
    finally:
        answer.cancel()


def admit(wrong: str, level: float, elapsed: float, cost: int, rate: float, burst: int) -> tuple[float, int]:
    """`admit` with one thing wrong."""
    if cost > burst:
        raise ValueError("never")
    before, level = level, level + rate * elapsed
    level = min(burst, int(level) if wrong == "whole_tokens" else level)
    if cost <= level:
        return level - cost, 0
    return level, math.ceil((cost - (before if wrong == "waits_from_before" else level)) / rate)


def draw(wrong: str, logits_NV: Tensor, temperature_N: Tensor, keys_N3: Tensor) -> Tensor:
    """`draw` with one thing wrong."""
    ids_N = torch.empty(len(logits_NV), dtype=torch.int64)
    if wrong == "batch_given_up" and logits_NV.isnan().any():
        return ids_N.fill_(-1)
    for n, (seed, k, i) in enumerate(keys_N3.tolist()):
        score_V, T = logits_NV[n].double(), temperature_N[0 if wrong == "first_temperature" else n].item()
        if wrong == "nearly_cold":
            T = max(T, 1e-6)
        if T > 0:
            key = {"seed": seed} if wrong == "seed_hashed" else {"key": seed}
            noise = np.random.Generator(np.random.Philox(**key, counter=[0, 0, k, i]))
            score_V = score_V / T - (-torch.from_numpy(noise.random(len(score_V))).log()).log()
        ids_N[n] = -1 if score_V.isnan().any() and wrong != "nan_wins" else score_V.argmax()
    return ids_N


def quantile(wrong: str, q: float, edges: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """`quantile` with one thing wrong."""
    if not 0 < q <= 1:
        raise ValueError("q")
    if counts[-1] == 0:
        return math.nan, math.nan, math.nan
    rank = q * (counts[-1] - 1 if wrong == "numpys_rank" else counts[-1])
    at = next(i for i, count in enumerate(counts) if count >= rank)
    lower, below = (edges[at - 1], counts[at - 1]) if at else (0.0, 0)
    if wrong == "wraps_around":
        lower = edges[at - 1]
    if edges[at] == math.inf:
        return lower, lower, math.inf
    return lower + (edges[at] - lower) * (rank - below) / (counts[at] - below), lower, edges[at]


def no_stops(failure: Failure) -> bool:
    """Whether it raised because no stop was asked for."""
    return failure.case.label == "no stops" and failure.outcome.error_type == "ValueError"


def refused_by_error(failure: Failure) -> bool:
    """Whether ValueError was raised for what would fit some time."""
    return failure.outcome.error_type == "ValueError" and not failure.refusal


def _known(answer: Callable[..., Any], says: dict[str, str]) -> tuple[Mistake, ...]:
    return tuple(Mistake(name, words, like=partial(answer, name)) for name, words in says.items())


EVENTS = _known(events, {
    "data_kept": "The lines of one event came out again with the next. When one is given out, begin with no lines.",
    "letters_stripped": '`lstrip("data: ")` takes away all leading letters d, a, t, colons and spaces, those of the '
    "data too. `removeprefix` takes a beginning away, once.",
    "ends_stripped": "Spaces at the end of a line are gone. They are data; only a \\r belongs to the line's end: "
    "`removesuffix`, not `rstrip`.",
    "done_in_a_line": "A line [DONE] was taken for the end. It is one if it is the whole event: look when the empty "
    "line has come.",
    "looks_empty": "A line with a space in it ended an event. It is not empty: its name is a space, and it is passed "
    "over.",
})  # fmt: skip
STOPS = (
    *_known(until_stop, {
        "searches_the_piece": "The end of the text was held, and then only the new piece was searched. A stop may "
        "begin in what is held: search both together.",
        "minus_zero": "Text came out twice. Where nothing has to be held, `held[-0:]` is all of it, not nothing: "
        "`held[len(held) - keep :]`.",
        "pattern": "A stop was taken for a regular expression, in which a dot is any letter. It is text: `find`, or "
        "`re.escape`.",
    }),
    Mistake("no_stops", "It fails where there are no stops: the `max` of nothing raises. Give it `default=0`.",
            when=no_stops),
)  # fmt: skip
RELAY = _known(relay, {
    "done_quoted": 'The end is marked by `"[DONE]"`, in quotes: it went through `json.dumps`. It is no JSON, and is '
    "sent as it is.",
    "one_behind": "Each piece waited for the next one. Send it as soon as it is there.",
})  # fmt: skip
ADMIT = (
    *_known(admit, {
        "whole_tokens": "The level was cut to whole tokens. Who asks often then gets less than `rate`, as every "
        "question loses a part of a token.",
        "waits_from_before": "The wait counts from the level before, as if nothing had flowed in since. The level of "
        "now is what is there.",
    }),
    Mistake("refused_by_error", "ValueError is for a cost above burst, which never fits. This one fits, now or later: "
            "return the level and the seconds.", when=refused_by_error),
)  # fmt: skip
DRAW = _known(draw, {
    "batch_given_up": "One row holds NaN, and others were given up with it. Rows do not mix: −1 for that row alone.",
    "nearly_cold": "A temperature of 0 was replaced by a small one. Between two tokens nearly as good the noise still "
    "decides; at 0 the largest logit does.",
    "seed_hashed": "Philox got the seed as its first argument, `seed`, which NumPy scrambles into a key. It is the "
    "key itself: `key=seed`.",
    "nan_wins": "NaN came through to `argmax`, which takes it for the largest. Look for it first, and give −1.",
    "first_temperature": "The first row's temperature was taken for all. Each row has its own.",
})  # fmt: skip
QUANTILE = _known(quantile, {
    "wraps_around": "`edges[at - 1]` of the first bucket is `edges[-1]`, the last edge: infinity. The first bucket "
    "begins at 0.",
    "numpys_rank": "The rank was taken among all but one, q · (total − 1), as NumPy does. Here it is q · total.",
})  # fmt: skip
