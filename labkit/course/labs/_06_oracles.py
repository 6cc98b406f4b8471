"""Lab 06's oracles: transformers' decoder layer, layer placement, cache, loader and logits warpers."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from labkit.course.attempt import Case
from labkit.course.given import Rotary

Layer = Callable[[Tensor], Tensor]


class _Part(nn.Module):
    """A plain function in the place of a module; transformers' attention answers a pair."""

    def __init__(self, call: Layer, pair: bool = False) -> None:
        super().__init__()
        self.call, self.pair = call, pair

    def forward(self, hidden_states: Tensor, **unread: object) -> Tensor | tuple[Tensor, None]:
        y = self.call(hidden_states)
        return (y, None) if self.pair else y


def block(x_BSD: Tensor, norm_attention: Layer, attention: Layer, norm_ffn: Layer, ffn: Layer) -> Tensor:
    """Qwen3-MoE's decoder layer with its four parts replaced by the given ones."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

    layer = Qwen3MoeDecoderLayer(_small(Qwen3MoeConfig, num_hidden_layers=1), 0)
    layer.input_layernorm, layer.self_attn = _Part(norm_attention), _Part(attention, pair=True)
    layer.post_attention_layernorm, layer.mlp = _Part(norm_ffn), _Part(ffn)
    y_BSD = layer(x_BSD)
    return y_BSD[0] if isinstance(y_BSD, tuple) else y_BSD


def _small(kind: type, **fields: object):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2, "vocab_size": 5}
    sizes = {"hidden_size": 4, "intermediate_size": 4, "moe_intermediate_size": 2, "num_experts": 2}
    return kind(**{**sizes, **heads, "num_experts_per_tok": 1, **fields})


def placement(
    num_layers: int, num_dense: int, every: int, d_model: int, d_dense: int, d_expert: int, num_experts: int,
    top_k: int, num_shared: int = 0,
) -> tuple[list[int], int, int]:  # fmt: skip
    """The feed-forward layers of Qwen3-MoE, or of DeepSeek-V3 with shared experts, built without memory and counted."""
    from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3
    from transformers.models.qwen3_moe import configuration_qwen3_moe, modeling_qwen3_moe

    sizes = {
        "num_hidden_layers": num_layers, "hidden_size": d_model, "intermediate_size": d_dense,
        "moe_intermediate_size": d_expert, "num_experts_per_tok": top_k,
    }  # fmt: skip
    if num_shared:
        more = {"first_k_dense_replace": num_dense, "n_routed_experts": num_experts, "n_shared_experts": num_shared}
        config = _small(configuration_deepseek_v3.DeepseekV3Config, **sizes, **more, n_group=1, topk_group=1)
        kind, sparse_kind = modeling_deepseek_v3.DeepseekV3DecoderLayer, modeling_deepseek_v3.DeepseekV3MoE
    else:
        more = {"mlp_only_layers": list(range(num_dense)), "decoder_sparse_step": every, "num_experts": num_experts}
        config = _small(configuration_qwen3_moe.Qwen3MoeConfig, **sizes, **more)
        kind, sparse_kind = modeling_qwen3_moe.Qwen3MoeDecoderLayer, modeling_qwen3_moe.Qwen3MoeSparseMoeBlock
    with torch.device("meta"):
        layers = [kind(config, i).mlp for i in range(num_layers)]
    sparse = [i for i, layer in enumerate(layers) if isinstance(layer, sparse_kind)]
    total = sum(p.numel() for layer in layers for p in layer.parameters())
    routed = sum(p.numel() for i in sparse for p in layers[i].experts.parameters())
    return sparse, total, total - routed + routed * top_k // num_experts


def places(case: Case) -> bool:
    """Whether transformers can express a placement: with shared experts, only dense layers first."""
    every, shared = case.args[2], case.args[8:]
    return not shared or every == 1


def cached_step(
    query_BH1d: Tensor, key_BG1d: Tensor, value_BG1d: Tensor, keys_BGSd: Tensor, values_BGSd: Tensor, real_BS: Tensor,
    rotate: Rotary,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Transformers' rotation, its DynamicCache and its eager attention, put together as in Qwen3-MoE's attention."""
    from transformers import DynamicCache
    from transformers.models.qwen3_moe.modeling_qwen3_moe import apply_rotary_pos_emb, eager_attention_forward

    d, groups = query_BH1d.shape[-1], query_BH1d.shape[1] // key_BG1d.shape[1]
    mask_BS = torch.cat([real_BS, real_BS.new_ones(len(real_BS), 1)], dim=1).long()
    position_B1 = (mask_BS.cumsum(1) - 1)[:, -1:]
    angles_B1d = torch.cat([rotate.angles(d, position_B1)] * 2, dim=-1)
    query, key = apply_rotary_pos_emb(query_BH1d, key_BG1d, angles_B1d.cos(), angles_B1d.sin())
    cache = DynamicCache()
    cache.update(keys_BGSd, values_BGSd, 0)
    keys, values = cache.update(key, value_BG1d, 0)
    hidden = torch.zeros(mask_BS.shape).masked_fill(mask_BS == 0, torch.finfo(torch.float32).min)[:, None, None]
    module = SimpleNamespace(num_key_value_groups=groups, training=False)
    out_B1Hd, _ = eager_attention_forward(module, query, keys, values, hidden, scaling=1 / math.sqrt(d))
    return out_B1Hd.transpose(1, 2), keys, values


def name_map(
    theirs: dict[str, Tensor], renames: dict[str, str], num_layers: int, num_dense: int, num_experts: int
) -> dict[str, Tensor]:
    """What a Qwen3-MoE of transformers holds after it has loaded a file with these tensors, under our names."""
    from safetensors.torch import save_file
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

    width = next(len(t) for name, t in theirs.items() if name.endswith("gate_proj.weight"))
    config = _small(
        Qwen3MoeConfig, num_hidden_layers=num_layers, mlp_only_layers=list(range(num_dense)),
        num_experts=max(1, num_experts), intermediate_size=width, moe_intermediate_size=width,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, _quietly():
        config.save_pretrained(folder)
        save_file(theirs, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        held = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = {}
    for their, mine in renames.items():
        for i in range(num_layers if "{i}" in their else 1):
            ours[mine.format(i=i)] = held[their.format(i=i)]
    for i in range(num_layers):
        mlp, ffn = f"model.layers.{i}.mlp", f"layers.{i}.ffn"
        if i < num_dense:
            halves = [held[f"{mlp}.{half}_proj.weight"] for half in ("gate", "up")]
            ours |= {f"{ffn}.gate_up_2FD": torch.cat(halves), f"{ffn}.down_DF": held[f"{mlp}.down_proj.weight"]}
            continue
        ours[f"{ffn}.router.weight_ED"] = held[f"{mlp}.gate.weight"]
        ours[f"{ffn}.experts.gate_up_E2FD"] = held[f"{mlp}.experts.gate_up_proj"]
        ours[f"{ffn}.experts.down_EDF"] = held[f"{mlp}.experts.down_proj"]
    return ours


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars, which a card has no place for."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def accepted(case: Case) -> bool:
    """Whether a case is not one to be refused: transformers draws what a file lacks and leaves out what is too many."""
    return not case.label.endswith("ValueError")


def sample(logits_BV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Transformers' warpers in the order of its `generate`, then the softmax that it draws from."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids, scores = torch.zeros(len(logits_BV), 1, dtype=torch.int64), TemperatureLogitsWarper(temperature)
    warpers = [scores, *([TopKLogitsWarper(top_k)] if top_k else []), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]
    for warper in warpers:
        logits_BV = warper(ids, logits_BV)
    return logits_BV.softmax(dim=-1)
