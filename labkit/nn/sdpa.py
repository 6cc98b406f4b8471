"""Torch's scaled dot-product attention, given what its fast backends take, and which backend that is.

A fast backend wants causality instead of a mask, values as wide as keys, and no term that learns beside the products.
So a sink becomes one more key, widths are made equal with zeros, and a single query's heads are laid side by side.

Shape suffixes: B batch, S queries, K keys, H query heads, G key and value heads, d head width.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.dispatch import Choice

NAMES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "another device's"}  # torch's SDPBackend
FLASH_WIDTH = 256  # the widest head that FlashAttention takes
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Call:
    """What torch is called with, and how to find the asked outputs in what it gives: after `skip` queries."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    grouped: bool
    skip: int = 0


def attend(
    query_BHSd: Tensor,
    key_BGKd: Tensor,
    value_BGKd: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax of scaled products, times the values (Vaswani et al. 2017, equation 1).

    Args:
        query_BHSd: [B, H, S, d]; key_BGKd: [B, G, K, d]; value_BGKd: [B, G, K, any width]; G divides H.
        mask: [B or 1, 1, S, K] bool, True where a query may look; None: causal, the queries being the last of the keys.
        scale: of the products before the softmax.
        sinks: [H], one more logit in each head's softmax, with a value of zero.

    Returns [B, H, S, value's width]. Raises ValueError for shapes that do not fit.

    >>> x = torch.tensor([[[[1.0], [3.0]]]])
    >>> attend(torch.zeros(1, 2, 2, 1), x, x, scale=1.0)[0, 1].tolist()
    [[1.0], [2.0]]
    """
    call = prepare(query_BHSd, key_BGKd, value_BGKd, mask, scale=scale, sinks=sinks)
    y = F.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=call.mask, is_causal=call.causal, scale=scale,
        enable_gqa=call.grouped,
    )  # fmt: skip
    y_BHSv = y[..., call.skip :, : value_BGKd.shape[-1]]
    return y_BHSv.reshape(*query_BHSd.shape[:-1], -1) if y_BHSv.shape[1] != query_BHSd.shape[1] else y_BHSv


def backend(
    query_BHSd: Tensor,
    key_BGKd: Tensor,
    value_BGKd: Tensor,
    mask: Tensor | None = None,
    *,
    sinks: Tensor | None = None,
) -> Choice:
    """Which backend of torch `attend` runs on for these tensors, and why no other.

    Args as for `attend`. The name is "flash", "efficient", "cudnn" or "math", torch's own choice; the reasons on a GPU
    are torch's own words, where it tells them.

    >>> x = torch.zeros(1, 2, 4, 8)
    >>> backend(x, x, x).name
    'flash'
    """
    call = prepare(query_BHSd, key_BGKd, value_BGKd, mask, scale=1.0, sinks=sinks)
    tensors = call.query, call.key, call.value, call.mask
    chosen = NAMES[torch._fused_sdp_choice(*tensors, 0.0, call.causal, scale=1.0, enable_gqa=call.grouped)]
    if query_BHSd.device.type != "cuda":
        how = "fused" if chosen == "flash" else "not fused: every product is stored"
        return Choice(chosen, f"on {query_BHSd.device.type} torch has one fused implementation and plain ones; {how}")
    params = torch.backends.cuda.SDPAParams(*tensors, 0.0, call.causal, call.grouped)
    refused = [
        f"{name} cannot: {why}" for name in ("cudnn", "flash", "efficient") if (why := _refusal(name, params, call))
    ]
    return Choice(chosen, "; ".join(refused) or "every backend can; torch prefers this one here")


def prepare(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, sinks: Tensor | None
) -> Call:
    """The call of torch that `attend` makes, so that `backend` can ask about the same one."""
    _check(query, key, value, mask, sinks)
    (H, S), (G, K) = query.shape[1:3], key.shape[1:3]
    if mask is None and 1 < S < K:
        mask = torch.ones(S, K, dtype=torch.bool, device=query.device).tril(K - S)[None, None]
    causal, skip = mask is None and S > 1, 0
    if sinks is not None:
        query, key, value, mask = _with_sinks(query, key, value, mask, sinks / scale, causal)
        skip = int(causal)
    elif query.shape[-1] != value.shape[-1]:
        width = max(query.shape[-1], value.shape[-1])
        query, key, value = (F.pad(t, (0, width - t.shape[-1])) for t in (query, key, value))
    if H == G:
        return Call(query, key, value, mask, causal, False, skip)
    if S == 1:
        return Call(query.reshape(query.shape[0], G, H // G, -1), key, value, mask, False, False)
    if _takes_groups(query, mask):
        return Call(query, key, value, mask, causal, True, skip)
    key, value = (t.repeat_interleave(H // G, dim=1) for t in (key, value))
    return Call(query, key, value, mask, causal, False, skip)


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks_H: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One more key, first of all: it alone has a one in a new dimension, where each head's queries have their sink.

    Its value is zero. The width grows to the next multiple of eight. Causally, an empty query before all others keeps
    each query in line with its own key.
    """
    B, H, S, d = query.shape
    width = -(-max(d + 1, value.shape[-1]) // 8) * 8
    sink_BHS1 = sinks_H.to(query.dtype)[None, :, None, None].expand(B, H, S, 1)
    query = F.pad(torch.cat([query, sink_BHS1], dim=-1), (0, width - d - 1, int(causal), 0))
    key = F.pad(key, (0, width - d, 1, 0))
    key[..., 0, d] = 1.0
    value = F.pad(value, (0, width - value.shape[-1], 1, 0))
    return query, key, value, None if mask is None else F.pad(mask, (1, 0), value=True)


def _takes_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether a fused backend reads shared heads in place; else they are copied, as its plain products would too."""
    if query.device.type == "cpu":
        return True
    return query.is_cuda and mask is None and query.dtype in HALVES and query.shape[-1] <= FLASH_WIDTH


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor | None) -> None:
    shapes = [tuple(t.shape) for t in (query, key, value)]
    if (
        any(len(shape) != 4 for shape in shapes) or shapes[1][:3] != shapes[2][:3] or shapes[0][0] != shapes[1][0]
        or shapes[0][3] != shapes[1][3] or shapes[0][1] % shapes[1][1]
    ):  # fmt: skip
        raise ValueError(
            f"queries, keys and values have shapes {shapes}; expected [B, H, S, d], [B, G, K, d] and [B, G, K, any "
            "width], with G a divisor of H"
        )
    (B, H, S, _), K = shapes[0], shapes[1][2]
    if mask is None and S > K:
        raise ValueError(f"there are {S} queries and {K} keys; without a mask the queries are the last of the keys")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in ((1, 1, S, K), (B, 1, S, K))):
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; expected bool [{B} or 1, 1, {S}, {K}]")
    if sinks is not None and tuple(sinks.shape) != (H,):
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}; expected ({H},), one for each head")


def _refusal(name: str, params: object, call: Call) -> str:
    """Why a CUDA backend cannot, in torch's words or, where it keeps them (2.11), in ours; empty if it can."""
    possible = getattr(torch.backends.cuda, f"can_use_{name}_attention")
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch tells each reason once in a process
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            if possible(params, True):
                return ""
    finally:
        torch.set_warn_always(before)
    words = [str(warning.message).split(" (Triggered")[0].strip() for warning in heard]
    if not words and name == "flash" and call.mask is not None:
        words = ["it takes causality, but no mask"]
    if not words and name != "efficient" and call.query.dtype not in HALVES:
        words = [f"it takes float16 and bfloat16, not {str(call.query.dtype).removeprefix('torch.')}"]
    return " ".join(words) or "torch does not say why"
