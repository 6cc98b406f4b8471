"""transformers' own attention modules of every family, and ours with the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.core.names import hf_config
from labkit.nn import Attention, LatentAttention
from labkit.nn.mask import attention_mask
from labkit.nn.rope import rope_tables

CLASSES = {
    "mixtral": "Mixtral", "olmoe": "Olmoe", "qwen3_moe": "Qwen3Moe", "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3", "gpt_oss": "GptOss",
}  # fmt: skip
NAMES = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "key_norm": "k_norm",
    "query_down": "q_a_proj", "query_up": "q_b_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm",
    "kv_up": "kv_b_proj",
}  # fmt: skip


def theirs(config: ModelConfig, family: str, layer: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """transformers' eager attention of one layer with random weights everywhere, and its rotary embedding."""
    found = hf_config(config, family)
    found._attn_implementation = "eager"
    package = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    module = getattr(package, f"{CLASSES[family]}Attention")(found, layer).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.named_parameters()):
            if "norm" in name:
                tensor.uniform_(0.7, 1.3, generator=generator)
            else:
                std = 1.5 * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.5
                tensor.normal_(std=std, generator=generator)
    return module, getattr(package, f"{CLASSES[family]}RotaryEmbedding")(found)


def pairs(ours: nn.Module, wanted: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Our parameters beside theirs, every one on both sides."""
    targets = dict(wanted.named_parameters())
    for name, parameter in ours.named_parameters():
        stem, _, leaf = name.partition(".")
        query_norm = "q_a_layernorm" if isinstance(ours, LatentAttention) else "q_norm"
        theirs_name = {**NAMES, "query_norm": query_norm}.get(stem, stem)
        yield name, parameter, targets.pop(f"{theirs_name}.{leaf}" if leaf else theirs_name)
    assert not targets, f"ours has no {sorted(targets)}"


def with_their_weights(config: ModelConfig, layer: int, wanted: nn.Module) -> nn.Module:
    """Our attention of one layer."""
    ours = (LatentAttention if config.attention == "mla" else Attention)(config, layer)
    with torch.no_grad():
        for _, parameter, target in pairs(ours, wanted):
            parameter.copy_(target)
    return ours


def inputs(config: ModelConfig, B: int, S: int, seed: int) -> tuple[Tensor, Tensor]:
    """What goes in, and what pulls on what comes out."""
    generator = torch.Generator().manual_seed(100 + seed)
    return tuple(torch.randn(B, S, config.d_model, generator=generator) for _ in range(2))


PADDINGS = st.sampled_from(["none", "left", "right"])


def padding_of(kind: str, B: int, S: int) -> Tensor | None:
    """A mask [B, S] whose rows have different numbers of real tokens; the last has no padding."""
    if kind == "none":
        return None
    real = torch.arange(S)[None] >= torch.arange(B - 1, -1, -1)[:, None] * 3
    return (real if kind == "left" else real.flip(1)).long()


def positions_of(real_BS: Tensor | None, S: int) -> Tensor:
    """The number of each token among the real ones."""
    return torch.arange(S)[None] if real_BS is None else (real_BS.cumsum(1) - 1).clamp_min(0)


def additive(S: int, real_BS: Tensor | None, window: int) -> Tensor:
    """The mask that eager attention adds, from its definition, one entry after another."""
    real = [[1] * S] if real_BS is None else real_BS.tolist()
    low = torch.finfo(torch.float32).min
    rows = [
        [[0.0 if j <= i and row[j] and (not window or i - j < window) else low for j in range(S)] for i in range(S)]
        for row in real
    ]
    return torch.tensor(rows)[:, None]


def run_theirs(wanted: nn.Module, rotary: nn.Module, x: Tensor, real_BS: Tensor | None, window: int) -> Tensor:
    """Their output for the whole sequence."""
    S = x.shape[1]
    tables = rotary(x, positions_of(real_BS, S).expand(len(x), S))
    mask = additive(S, real_BS, window).expand(len(x), 1, S, S)
    return wanted(hidden_states=x, position_embeddings=tables, attention_mask=mask)[0]


def run_ours(ours: nn.Module, x: Tensor, real_BS: Tensor | None = None) -> Tensor:
    """Our output for the whole sequence."""
    config, S = ours.config, x.shape[1]
    cos, sin = rope_tables(config, positions_of(real_BS, S).to(x.device), x.dtype)
    return ours(x, cos, sin, attention_mask(S, S, real_BS, window=window_of(ours), device=x.device))


def run_cached(ours: nn.Module, x: Tensor, cache, cuts: tuple[int, ...], real_BS: Tensor | None = None) -> Tensor:
    """Our output, made in pieces that end at these positions."""
    outputs, start = [], 0
    positions = positions_of(real_BS, x.shape[1]).to(x.device)
    for end in cuts:
        cos, sin = rope_tables(ours.config, positions[:, start:end], x.dtype)
        seen = None if real_BS is None else real_BS[:, :end]
        mask = attention_mask(end - start, end, seen, window=window_of(ours), device=x.device)
        outputs.append(ours(x[:, start:end], cos, sin, mask, cache))
        cache.advance(end - start)
        start = end
    return torch.cat(outputs, dim=1)


def window_of(ours: nn.Module) -> int:
    """How far back this layer sees; 0: everything."""
    return ours.config.sliding_window if ours.config.slides(ours.layer) else 0
