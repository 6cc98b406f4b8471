"""Rotary positions: pairs of a head's dimensions turn by an angle that grows with the position.

RoFormer (Su et al. 2021, arXiv 2104.09864, equations 13–16), and YaRN (Peng et al. 2023, arXiv 2309.00071), which
stretches slow turns to reach a longer context. Left out on purpose: scalings that no model of ours uses.

Shape suffixes: B batch, H heads, S sequence, d dimensions of a head that turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.core.config import ModelConfig, YarnConfig


def inverse_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """The angle by which each pair of dimensions turns from one position to the next, in radians: [d/2] float32.

    Without YaRN, theta^(−2i/d) for pair i. With it, a pair that turns often within the original context keeps its
    angle, one that hardly turns has it divided by the factor, and a ramp over the dimensions joins the two.
    Computed on `device`, so that nothing waits for a copy.

    >>> from labkit.core.presets import preset
    >>> inverse_frequencies(preset("olmoe-1b-7b"))[0].item()
    1.0
    """
    d, yarn = config.rotary_dim, config.yarn
    angles = config.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float32, device=device) / d)
    if yarn is None:
        return angles
    low, high = (_pair_that_turns(beta, config) for beta in (yarn.beta_fast, yarn.beta_slow))
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float32, device=device) - low) / (high - low or 0.001)).clamp(0, 1)
    return angles * (1 - ramp) + angles / yarn.factor * ramp


def _pair_that_turns(times: float, config: ModelConfig) -> float:
    """The (fractional) pair whose angle makes so many full turns over the original context."""
    turns = config.yarn.original_context / (times * 2 * math.pi)
    return config.rotary_dim * math.log(turns) / (2 * math.log(config.rope_theta))


def attention_factor(yarn: YarnConfig | None) -> float:
    """What cosine and sine are multiplied by, so that longer contexts are attended as sharply (YaRN, section 3.4).

    >>> attention_factor(None), round(attention_factor(YarnConfig(factor=4, original_context=8)), 3)
    (1.0, 1.139)
    """
    if yarn is None:
        return 1.0
    if yarn.attention_factor:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor)


def softmax_scale(config: ModelConfig) -> float:
    """What scores are multiplied by before the softmax: one over the root of a head's width.

    In MLA, DeepSeek puts YaRN's correction here instead of into the rotation, squared since queries and keys share it.

    >>> from labkit.core.presets import preset
    >>> round(softmax_scale(preset("deepseek-v3")) * 192**0.5, 3)
    1.874
    """
    scale, yarn = config.head_dim**-0.5, config.yarn
    if config.attention == "mla" and yarn is not None and yarn.mscale_all_dim:
        scale *= _mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def rope_tables(config: ModelConfig, positions_BS: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and pair.

    Args:
        positions_BS: [B, S], or [1, S] or [S] for all rows alike, whole numbers; angles are computed in float32.
        dtype: of the result.

    Returns two tensors [B or 1, S, d/2], YaRN's attention factor inside. Raises ValueError for other positions.
    """
    if positions_BS.ndim not in (1, 2) or positions_BS.is_floating_point() or positions_BS.dtype == torch.bool:
        raise ValueError(
            f"positions_BS has shape {tuple(positions_BS.shape)} and dtype {positions_BS.dtype}; give integers [B, S]"
        )
    positions_BS = torch.atleast_2d(positions_BS)
    angles = positions_BS[..., None].float() * inverse_frequencies(config, positions_BS.device)
    factor = attention_factor(config.yarn)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x_BHSd: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn each pair of dimensions by its position's angle.

    Args:
        x_BHSd: [B, H, S, d].
        cos, sin: [B, S, d/2] from `rope_tables`.
        interleaved: pairs are neighbours (DeepSeek); otherwise dimension i turns with i + d/2.

    Returns the same shape, pairs where they were. Raises ValueError if the tables have another width.

    >>> quarter = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> rotate(torch.tensor([[[[1.0, 0.0]]]]), *quarter).tolist()
    [[[[0.0, 1.0]]]]
    """
    if 2 * cos.shape[-1] != x_BHSd.shape[-1]:
        raise ValueError(f"x has {x_BHSd.shape[-1]} dimensions to turn, the tables {2 * cos.shape[-1]}; give as many")
    cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        return torch.stack(_turned(x_BHSd[..., ::2], x_BHSd[..., 1::2], cos, sin), dim=-1).flatten(-2)
    return torch.cat(_turned(*x_BHSd.chunk(2, dim=-1), cos, sin), dim=-1)


def _turned(first: Tensor, second: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
