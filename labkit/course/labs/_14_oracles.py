"""Lab 14: what others make of the same streams, numbers and histograms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from labkit.course.attempt import Case


def events(chunks: Iterator[bytes]) -> Iterator[str]:
    """The decoder inside the `openai` client; that [DONE] ends a stream is decided above it, there as here."""
    from openai._streaming import SSEDecoder

    read = (event.data for event in SSEDecoder().iter_bytes(chunks))
    return itertools.takewhile(lambda data: data != "[DONE]", read)


def events_fit(case: Case) -> bool:
    """It tells of an event without data, which is nothing here, and takes a lone \\r for a line's end."""
    chunks = case.args[0]
    return b"event: nothing" not in b"".join(chunks) and not any(chunk.endswith(b"\r") for chunk in chunks)


def until_stop(pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
    """`regex` on the whole text so far: a partial match is a beginning that must be held back."""
    import regex

    text, out = "", 0
    for piece in pieces:
        text += piece
        found = regex.search(regex.escape(stops[0]), text, partial=True)
        end = len(text) if found is None else found.start()
        yield text[out:end]
        out = end
        if found is not None and not found.partial:
            return
    yield text[out:]


def stop_fits(case: Case) -> bool:
    """Of several stops it takes the one that begins first."""
    return len(case.args[1]) == 1


def draw(logits_NV: Tensor, temperature_N: Tensor, keys_N3: Tensor) -> Tensor:
    """Noise from the same uniform numbers, through the inverse of torch's Gumbel distribution."""
    gumbel, ids = torch.distributions.Gumbel(torch.tensor(0.0).double(), 1.0), []
    for logits_V, temperature, (seed, *counter) in zip(logits_NV, temperature_N, keys_N3.tolist(), strict=True):
        uniform = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, *counter])).random(len(logits_V))
        score_V = logits_V + temperature * gumbel.icdf(torch.from_numpy(uniform))
        ids.append(-1 if logits_V.isnan().any() else int(score_V.argmax()))
    return torch.tensor(ids, dtype=torch.int64)


def quantile(q: float, edges: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """NumPy's linear interpolation between the corners of the cumulative counts; edges by its search."""
    rank = q * counts[-1]
    at = int(np.searchsorted(counts, rank))
    corners = np.array([0.0, *edges[:-1]])
    return float(np.interp(rank, [0, *counts[:-1]], corners)), float(corners[at]), float(edges[at])


def quantile_fits(case: Case) -> bool:
    """Where no bucket is empty."""
    q, _, counts = case.args
    return 0 < q <= 1 and all(a < b for a, b in pairwise([0, *counts]))
