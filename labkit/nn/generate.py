"""Continue a prompt token by token, with a cache so that no token's keys are computed twice.

Left out on purpose: beams, stop strings, batches whose members come and go (see `serve`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit.nn.cache import KVCache
from labkit.nn.model import evaluating
from labkit.nn.sampling import Sampling, choose

if TYPE_CHECKING:
    from labkit.nn.model import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    ids_BS: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """The prompts and what follows them; names and meaning as in transformers.

    Args:
        ids_BS: [B, S] prompts; shorter ones are padded on the left.
        attention_mask: [B, S], 1 where a token is real; None: all are.
        max_new_tokens: how many are added at most; the prompt does not count.
        do_sample, temperature, top_k, top_p: see `nn.sampling.Sampling`.
        eos_token_id: ends a row; None: rows go on to the end. pad_token_id: stands after it, by default the same.
        use_cache: False computes every token anew at each step, for comparison.
        generator: of the draws, on the model's device.
        cache: an empty one to use, so that it can be looked at afterwards; None: one of the size needed is made.

    Returns [B, S + n] int64, n ≤ max_new_tokens: fewer if every row has ended. The model is in evaluation mode
    meanwhile. Raises ValueError for padding on the right, an empty prompt, more tokens than the model was made for, and
    values out of range.
    """
    sampling = Sampling(do_sample, temperature, top_k, top_p)
    mask_BS = _checked(model, ids_BS, attention_mask, max_new_tokens)
    _check_tokens(model.config.vocab_size, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    _check_cache(cache, use_cache)
    B, S = ids_BS.shape
    if use_cache and cache is None:
        cache = KVCache(model.config, B, S + max_new_tokens, dtype=model.dtype, device=model.device)
    with evaluating(model):
        return _steps(
            model, ids_BS, mask_BS, max_new_tokens, sampling, eos_token_id, pad_token_id,
            cache if use_cache else None, generator,
        )  # fmt: skip


def _steps(model, ids_BS, mask_BS, count, sampling, eos, pad, cache, generator) -> Tensor:
    pad = eos if pad is None else pad
    ended_B = torch.zeros(len(ids_BS), dtype=torch.bool, device=ids_BS.device)
    fresh_BS = ids_BS
    for _ in range(count):
        output = model(fresh_BS if cache is not None else ids_BS, mask_BS, cache=cache)
        next_B = choose(output.logits[:, -1], sampling, generator)
        if eos is not None:
            next_B = torch.where(ended_B, pad, next_B)
            ended_B = ended_B | (next_B == eos)
        fresh_BS = next_B[:, None]
        ids_BS = torch.cat([ids_BS, fresh_BS], dim=1)
        mask_BS = None if mask_BS is None else torch.cat([mask_BS, torch.ones_like(fresh_BS)], dim=1)
        if eos is not None and bool(ended_B.all()):
            break
    return ids_BS


def _checked(model: Transformer, ids_BS: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> Tensor | None:
    """The mask to go on with; None where nothing is padding, so that fast attention applies."""
    if not isinstance(ids_BS, Tensor):
        raise ValueError(f"ids_BS is a {type(ids_BS).__name__}; give the prompts as a tensor [B, S] of token ids")
    if ids_BS.ndim != 2 or ids_BS.is_floating_point() or ids_BS.numel() == 0:
        raise ValueError(f"ids_BS has shape {tuple(ids_BS.shape)} and dtype {ids_BS.dtype}; give prompts [B, S]")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; give a whole number of 1 or more")
    total, limit = ids_BS.shape[1] + max_new_tokens, model.config.max_context
    if total > limit:
        raise ValueError(
            f"{ids_BS.shape[1]} tokens of prompt and {max_new_tokens} new ones are {total}; the model was made for "
            f"{limit}: shorten the prompt, or ask for fewer"
        )
    if attention_mask is None:
        return None
    if attention_mask.shape != ids_BS.shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {tuple(ids_BS.shape)}")
    mask_BS = (attention_mask != 0).long()
    if not bool(mask_BS[:, -1].all()):
        row = int((mask_BS[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"row {row} ends with padding, so its answer would follow padding; pad on the left (padding_side='left'), "
            "and leave empty prompts out"
        )
    return None if bool(mask_BS.all()) else mask_BS


def _check_tokens(vocab_size: int, **tokens: int | None) -> None:
    for name, token in tokens.items():
        if token is not None and (isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size):
            raise ValueError(f"{name} is {token!r}; give one token id below {vocab_size}, or None")


def _check_cache(cache: KVCache | None, use_cache: bool) -> None:
    if cache is not None and not use_cache:
        raise ValueError("a cache is given and use_cache is False; leave one of them out")
    if cache is not None and cache.length:
        raise ValueError(f"the cache holds {cache.length} positions already; give an empty one")
