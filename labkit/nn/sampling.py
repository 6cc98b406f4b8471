"""The next token out of logits: filters in the order and with the meaning of transformers' `generate`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose.

    Args:
        do_sample: draw from the distribution; otherwise the best token is taken (the lowest id of equals).
        temperature: what logits are divided by; top_k: only the k best stay, 0 all (Fan et al. 2018, arXiv 1805.04833).
        top_p: only the fewest tokens whose probabilities reach p stay, 1 all (Holtzman et al. 2019, arXiv 1904.09751).

    Raises ValueError for values out of range, and for filters without `do_sample`, which would do nothing.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; give a positive number, or do_sample=False for greedy"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}; give a whole number, 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0, up to 1 for all tokens")
        if not self.do_sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise ValueError("temperature, top_k and top_p choose among tokens; set do_sample=True, or leave them out")


def filtered(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The logits that are drawn from: divided by the temperature, −inf where top-k or top-p leave a token out.

    Args:
        logits_BV: [B, V]; computed in float32.

    >>> filtered(torch.tensor([[0.0, 2.0, 1.0]]), Sampling(True, top_k=2)).tolist()
    [[-inf, 2.0, 1.0]]
    """
    logits_BV = logits_BV.float() / sampling.temperature
    if sampling.top_k:
        least_B1 = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if sampling.top_p < 1:
        ordered_BV, ids_BV = logits_BV.sort(dim=-1)
        tail_BV = ordered_BV.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        tail_BV[:, -1] = False  # the best token always stays
        logits_BV = logits_BV.masked_fill(tail_BV.scatter(1, ids_BV, tail_BV), float("-inf"))
    return logits_BV


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """One token for each row: [B, V] to [B] int64."""
    if not sampling.do_sample:
        return logits_BV.argmax(dim=-1)
    scores_BV = filtered(logits_BV, sampling).softmax(-1)
    return torch.multinomial(scores_BV, 1, generator=generator)[:, 0]
