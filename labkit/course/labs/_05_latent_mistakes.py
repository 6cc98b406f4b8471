"""Lab 05: mistakes in latent attention, expanded and absorbed, as a learner's function makes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.labs._05_cases import rope

Triple = tuple[Tensor, Tensor, Tensor]

# --------------------------------------------------------------------------------------------------------------- mla


def _neighbours(x: Tensor, positions: Tensor) -> Tensor:
    return rope(x, positions, interleaved=True)


def _halves(x: Tensor, positions: Tensor) -> Tensor:
    return rope(x, positions)


def _still(x: Tensor, positions: Tensor) -> Tensor:
    return x


def _rms(latent: Tensor, norm: Tensor) -> Tensor:
    return F.rms_norm(latent, norm.shape, norm, eps=1e-6)


def _mla(
    x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor, *,
    turn_query: Callable = _neighbours, turn_key: Callable = _neighbours, normed: Callable = _rms,
    causal: bool = True, scale: float | None = None, value_first: bool = False, rope_first: bool = False,
    rotary: bool = True, raw_key: bool = False, raw_latent: bool = False,
) -> Triple:  # fmt: skip
    """Latent attention with one thing changed."""
    R, H = len(norm), len(query_w)
    r = len(down) - R
    n, v = query_w.shape[1] - r, up.shape[1] - query_w.shape[1] + r
    query = torch.einsum("bsD,hdD->bhsd", x, query_w)
    parts = query.split([r, n], dim=-1)[::-1] if rope_first else query.split([n, r], dim=-1)
    query = torch.cat([parts[0], turn_query(parts[1], positions)], dim=-1)
    plain, key_r = (x @ down.T).split([R, r], dim=-1)
    latent, turned = normed(plain, norm), turn_key(key_r[:, None], positions)
    expanded = torch.einsum("bsR,heR->bhse", latent, up)
    value, key = expanded.split([v, n], dim=-1) if value_first else expanded.split([n, v], dim=-1)[::-1]
    key = torch.cat([key, turned.expand(-1, H, -1, -1)], dim=-1)
    if not rotary:
        query, key, scale = query[..., :n], key[..., :n], (n + r) ** -0.5
    if scale == 0.0:
        scale = n**-0.5
    y = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    return y, plain if raw_latent else latent, key_r if raw_key else turned[:, 0]


def mla_norm_missing(*args: Tensor) -> Triple:
    return _mla(*args, normed=lambda latent, norm: latent)


def mla_norm_without_scale(*args: Tensor) -> Triple:
    return _mla(*args, normed=lambda latent, norm: _rms(latent, torch.ones_like(norm)))


def mla_layer_norm(*args: Tensor) -> Triple:
    return _mla(*args, normed=lambda latent, norm: F.layer_norm(latent, norm.shape, norm, eps=1e-6))


def mla_norm_over_all(x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor) -> Triple:
    """The rotary key takes part in the root mean square."""
    both = (x @ down.T).square().mean(-1, keepdim=True)
    return _mla(
        x, query_w, down, norm, up, positions, normed=lambda latent, scale: latent * (both + 1e-6).rsqrt() * scale
    )


def mla_raw_latent_cached(*args: Tensor) -> Triple:
    return _mla(*args, raw_latent=True)


def mla_raw_key_cached(*args: Tensor) -> Triple:
    return _mla(*args, raw_key=True)


def mla_key_not_turned(*args: Tensor) -> Triple:
    return _mla(*args, turn_key=_still)


def mla_query_not_turned(*args: Tensor) -> Triple:
    return _mla(*args, turn_query=_still)


def mla_nothing_turned(*args: Tensor) -> Triple:
    return _mla(*args, turn_query=_still, turn_key=_still)


def mla_by_halves(*args: Tensor) -> Triple:
    return _mla(*args, turn_query=_halves, turn_key=_halves)


def mla_from_zero(x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor) -> Triple:
    return _mla(x, query_w, down, norm, up, torch.arange(x.shape[1])[None])


def mla_not_causal(*args: Tensor) -> Triple:
    return _mla(*args, causal=False)


def mla_scale_of_nope(*args: Tensor) -> Triple:
    return _mla(*args, scale=0.0)


def mla_unscaled(*args: Tensor) -> Triple:
    return _mla(*args, scale=1.0)


def mla_value_first(*args: Tensor) -> Triple:
    return _mla(*args, value_first=True)


def mla_rope_first(*args: Tensor) -> Triple:
    return _mla(*args, rope_first=True)


def mla_rope_left_out(*args: Tensor) -> Triple:
    return _mla(*args, rotary=False)


def mla_heads_last(*args: Tensor) -> Triple:
    y, latent, key = _mla(*args)
    return y.transpose(1, 2), latent, key


def mla_key_with_a_head(*args: Tensor) -> Triple:
    y, latent, key = _mla(*args)
    return y, latent, key[:, None]


def mla_kv_cached(x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor) -> Triple:
    """The expanded keys and values are returned for the cache."""
    y, latent, key = _mla(x, query_w, down, norm, up, positions)
    n = query_w.shape[1] - key.shape[-1]
    expanded = torch.einsum("bsR,heR->bhse", latent, up)
    shared = key[:, None].expand(-1, len(query_w), -1, -1)
    return y, torch.cat([expanded[..., :n], shared], dim=-1), expanded[..., n:]


# ------------------------------------------------------------------------------------------------------------ absorb


def _absorb(
    query: Tensor, latent: Tensor, rotary: Tensor, up: Tensor, seen: Tensor, *, scale: float | None = None,
    fill: float = float("-inf"), masked: bool = True, with_rope: bool = True, value_first: bool = False,
    dim: int = -1,
) -> Triple:  # fmt: skip
    """A step of absorbed attention with one thing changed."""
    n = query.shape[-1] - rotary.shape[-1]
    v = up.shape[1] - n
    up_value, up_key = up.split([v, n], dim=1) if value_first else up.split([n, v], dim=1)[::-1]
    folded = torch.einsum("bhn,hnR->bhR", query[..., :n], up_key)
    scores = folded @ latent.mT
    if with_rope:
        scores = scores + query[..., n:] @ rotary.mT
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if masked:
        scores = scores.masked_fill(~seen[:, None], fill)
    read = scores.softmax(dim=dim) @ latent
    return torch.einsum("bhR,hvR->bhv", read, up_value), folded, read


def absorb_scale_of_the_latent(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent, rotary, up, seen, scale=(latent.shape[-1] + rotary.shape[-1]) ** -0.5)


def absorb_scale_of_the_rank(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent, rotary, up, seen, scale=latent.shape[-1] ** -0.5)


def absorb_scale_of_nope(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent, rotary, up, seen, scale=(query.shape[-1] - rotary.shape[-1]) ** -0.5)


def absorb_unscaled(*args: Tensor) -> Triple:
    return _absorb(*args, scale=1.0)


def absorb_rope_left_out(*args: Tensor) -> Triple:
    return _absorb(*args, with_rope=False)


def absorb_mask_ignored(*args: Tensor) -> Triple:
    return _absorb(*args, masked=False)


def absorb_mask_of_zeros(*args: Tensor) -> Triple:
    return _absorb(*args, fill=0.0)


def absorb_masked_afterwards(query, latent, rotary, up, seen) -> Triple:
    """Shares are zeroed after the softmax, so they do not sum to one."""
    _, folded, _ = _absorb(query, latent, rotary, up, seen)
    n = query.shape[-1] - rotary.shape[-1]
    scores = (folded @ latent.mT + query[..., n:] @ rotary.mT) * query.shape[-1] ** -0.5
    read = (scores.softmax(-1) * seen[:, None]) @ latent
    return torch.einsum("bhR,hvR->bhv", read, up[:, n:]), folded, read


def absorb_mask_upside_down(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent, rotary, up, ~seen)


def absorb_value_first(*args: Tensor) -> Triple:
    return _absorb(*args, value_first=True)


def absorb_over_heads(*args: Tensor) -> Triple:
    return _absorb(*args, dim=1)


def absorb_value_not_folded(*args: Tensor) -> Triple:
    _, folded, read = _absorb(*args)
    return read, folded, read


def absorb_first_head(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent, rotary, up[:1].expand_as(up), seen)


def absorb_transposed(query, latent, rotary, up, seen) -> Triple:
    """The key's matrix is applied the wrong way round, where it is square."""
    n = query.shape[-1] - rotary.shape[-1]
    turned = torch.cat([up[:, :n].mT, up[:, n:]], dim=1) if n == up.shape[-1] else up
    return _absorb(query, latent, rotary, turned, seen)


def absorb_query_scaled(*args: Tensor) -> Triple:
    y, folded, read = _absorb(*args)
    return y, folded * args[0].shape[-1] ** -0.5, read


def absorb_rotary_beside(query, latent, rotary, up, seen) -> Triple:
    """What SDPA's query and value would be with the rotary part attached."""
    y, folded, read = _absorb(query, latent, rotary, up, seen)
    n = query.shape[-1] - rotary.shape[-1]
    return y, torch.cat([folded, query[..., n:]], dim=-1), read
