"""Lab 14: right answers, as `reveal` shows them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def events(chunks: Iterator[bytes]) -> Iterator[str]:
    held, data = b"", []
    for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ").decode())
            elif line.removesuffix(b"\r") == b"" and data:
                text, data = "\n".join(data), []
                if text == "[DONE]":
                    return
                yield text


def until_stop(pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        for letter in piece:
            held += letter
            if ended := [stop for stop in stops if held.endswith(stop)]:
                yield held[: len(held) - max(map(len, ended))]
                return
        begun = [n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])]
        keep = max(begun, default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


async def relay(engine: Any, prompt: str) -> AsyncIterator[str]:
    answer = engine.submit(prompt)
    try:
        async for piece in answer:
            yield f"data: {json.dumps({'text': piece})}\n\n"
        yield "data: [DONE]\n\n"
    except RuntimeError as error:
        problem = {"message": str(error), "type": "server_error"}
        yield f"data: {json.dumps({'error': problem})}\n\n"
    finally:
        answer.cancel()


def admit(level: float, elapsed: float, cost: int, rate: float, burst: int) -> tuple[float, int]:
    if cost > burst:
        raise ValueError(f"{cost} tokens are more than the bucket ever holds, {burst}")
    level = min(burst, level + rate * elapsed)
    if cost <= level:
        return level - cost, 0
    return level, math.ceil((cost - level) / rate)


def draw(logits_NV: Tensor, temperature_N: Tensor, keys_N3: Tensor) -> Tensor:
    ids_N = torch.empty(len(logits_NV), dtype=torch.int64)
    for n, (seed, k, i) in enumerate(keys_N3.tolist()):
        score_V = logits_NV[n].double()
        if temperature_N[n] > 0:
            noise = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, k, i]))
            gumbel_V = -(-torch.from_numpy(noise.random(len(score_V))).log()).log()
            score_V = score_V / temperature_N[n] + gumbel_V
        ids_N[n] = -1 if score_V.isnan().any() else score_V.argmax()
    return ids_N


def quantile(q: float, edges: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}; give a share above 0, up to 1")
    if counts[-1] == 0:
        return math.nan, math.nan, math.nan
    rank = q * counts[-1]
    at = next(i for i, count in enumerate(counts) if count >= rank)
    lower, below = (edges[at - 1], counts[at - 1]) if at else (0.0, 0)
    if edges[at] == math.inf:
        return lower, lower, math.inf
    share = (rank - below) / (counts[at] - below)
    return lower + share * (edges[at] - lower), lower, edges[at]
