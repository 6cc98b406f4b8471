"""The next tokens of many sequences at once, each as its own request asks.

Filters mean what they mean in `nn.sampling`, which is transformers' `generate`; here every row has its own. Drawing is
taking the largest of logits plus noise (`engine.noise`), so a draw depends on its row's logits and key alone.

Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.serve.engine.delta import TokenLogprob
from labkit.serve.engine.noise import gumbel, signed
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.vocabulary import Vocabulary

NO_TOKEN = -1  # in place of a token: the row's logits are no numbers, or nothing is allowed


@dataclass(frozen=True, slots=True)
class Choice:
    """How one row is chosen from: what was asked, and the key of this draw (greedy ones need none)."""

    params: SamplingParams
    key: int = 0


def best(logits_RV: Tensor) -> Tensor:
    """The best token of each row, [R] int64, the lowest id of equals; `NO_TOKEN` where a row holds NaN or +inf."""
    values_R, ids_R = logits_RV.max(dim=-1)
    return torch.where(values_R.isfinite(), ids_R, NO_TOKEN)


def choose(logits_RV: Tensor, choices: Sequence[Choice], allowed_RV: Tensor | None = None) -> Tensor:
    """One token for each row.

    Args:
        logits_RV: floating point; computed in float32, or float64 if they are.
        choices: one for each row.
        allowed_RV: bool, false where a grammar forbids a token.

    Returns [R] int64, `NO_TOKEN` for rows that are not finite or allow nothing.
    """
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    spoilt_R = ~logits_RV.amax(dim=-1).isfinite()
    if allowed_RV is not None:
        logits_RV = logits_RV.masked_fill(~allowed_RV, float("-inf"))
    drawn = [at for at, choice in enumerate(choices) if not choice.params.greedy]
    if not drawn:
        return best(logits_RV).masked_fill(spoilt_R, NO_TOKEN)
    picked = [choices[at] for at in drawn]
    everyone = len(drawn) == len(choices)
    rows = slice(None) if everyone else sent(drawn, torch.int64, logits_RV.device)
    scores_RV = filtered(logits_RV[rows], [choice.params for choice in picked])
    keys_R = sent(signed([choice.key for choice in picked]), torch.int64, logits_RV.device)
    scores_RV = scores_RV + gumbel(keys_R, logits_RV.shape[-1])
    chosen_R = best(scores_RV)
    if not everyone:
        chosen_R = best(logits_RV).index_put((rows,), chosen_R)
    return chosen_R.masked_fill(spoilt_R, NO_TOKEN)


def filtered(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """What is drawn from: divided by the temperature, −inf where top-k or top-p leave a token out.

    Args:
        logits_RV: in float32 or wider; a row's largest value becomes 0, so that no temperature overflows.
        params: of each row.
    """
    temperatures = _column([one.temperature for one in params], logits_RV)
    logits_RV = (logits_RV - logits_RV.amax(dim=-1, keepdim=True)) / temperatures
    some = [at for at, one in enumerate(params) if one.top_k or one.top_p < 1]
    if not some:
        return logits_RV
    rows = sent(some, torch.int64, logits_RV.device)
    return logits_RV.index_put((rows,), _cut(logits_RV[rows], [params[at] for at in some]))


def _cut(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    V = logits_RV.shape[-1]
    ordered_RV, ids_RV = logits_RV.sort(dim=-1)
    firsts = [V - min(one.top_k or V, V) for one in params]
    least_R1 = ordered_RV.gather(1, sent(firsts, torch.int64, logits_RV.device)[:, None])
    ordered_RV = ordered_RV.masked_fill(ordered_RV < least_R1, float("-inf"))  # equals of the k-th stay
    if any(one.top_p < 1 for one in params):
        rest_R1 = _column([1 - one.top_p if one.top_p < 1 else -1.0 for one in params], logits_RV)
        tail_RV = ordered_RV.softmax(-1).cumsum(-1) <= rest_R1
        tail_RV[:, -1] = False  # the best token always stays
        ordered_RV = ordered_RV.masked_fill(tail_RV, float("-inf"))
    return torch.empty_like(logits_RV).scatter_(1, ids_RV, ordered_RV)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return sent(values, like.dtype, like.device)[:, None]


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host as a tensor of the device, which nobody waits for."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def logprobs(
    logits_RV: Tensor, ids: Sequence[int], tops: Sequence[int], vocabulary: Vocabulary | None
) -> list[TokenLogprob]:
    """How likely the model found each row's token, and the best alternatives.

    Args:
        logits_RV: of the model, untouched; ids: one token for each row; tops: alternatives of each row, 0 to 20.
        vocabulary: gives the tokens' texts; without it they are empty.
    """
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(dim=-1)
    chosen = wide_RV.gather(1, torch.tensor(ids, device=wide_RV.device)[:, None])[:, 0].tolist()
    most = min(max(tops), wide_RV.shape[-1])
    values, tokens = (t.tolist() for t in wide_RV.topk(most)) if most else ([[]] * len(ids), [[]] * len(ids))

    def text(id: int) -> str:
        return "" if vocabulary is None else vocabulary.text(id)

    return [
        TokenLogprob(id, text(id), chosen[at], tuple(
            (token, text(token), value)
            for token, value in zip(tokens[at][: tops[at]], values[at][: tops[at]], strict=True)
        ))
        for at, id in enumerate(ids)
    ]  # fmt: skip
