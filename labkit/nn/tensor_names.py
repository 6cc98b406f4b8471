"""The names of tensors: ours on one side, those of Hugging Face files on the other.

One of our tensors is one or more tensors of a file: an expert's matrices are separate there, gate and up too. Each such
`Piece` says which part of ours it is. The families differ in a few words, which stand in tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labkit.core.config import ModelConfig

Layout = Literal["same", "transposed", "interleaved", "interleaved_transposed"]


@dataclass(frozen=True)
class Piece:
    """One tensor of a file.

    Args:
        name: there; where: the part of our tensor that it is, for indexing.
        layout: "same"; "transposed" in its last two dimensions; "interleaved", where gate and up rows take turns (or
            columns, when transposed too).
    """

    name: str
    where: tuple[slice | int, ...] = ()
    layout: Layout = "same"

    def ours(self, theirs: Tensor) -> Tensor:
        """The file's tensor in our layout."""
        if self.layout in ("transposed", "interleaved_transposed"):
            theirs = theirs.mT
        if self.layout.startswith("interleaved"):
            return torch.cat([theirs[:, ::2], theirs[:, 1::2]], dim=1)
        return theirs

    def theirs(self, ours: Tensor) -> Tensor:
        """Our part in the file's layout."""
        if self.layout.startswith("interleaved"):
            ours = torch.stack(ours.chunk(2, dim=1), dim=2).flatten(1, 2)
        return ours.mT if self.layout in ("transposed", "interleaved_transposed") else ours


@dataclass(frozen=True)
class Words:
    """How one family's files call the parts of a sparse layer.

    Args:
        architecture: of transformers; moe: the layer; router: its linear map inside `moe`.
        matrices: gate, up and down of an expert; None where all experts are fused.
    """

    architecture: str
    moe: str = "mlp"
    router: str = "gate"
    matrices: tuple[str, str, str] | None = ("gate_proj", "up_proj", "down_proj")


WORDS: Mapping[str, Words] = {
    "mixtral": Words("MixtralForCausalLM", moe="block_sparse_moe", matrices=("w1", "w3", "w2")),
    "olmoe": Words("OlmoeForCausalLM"),
    "qwen3_moe": Words("Qwen3MoeForCausalLM"),
    "deepseek_v2": Words("DeepseekV2ForCausalLM"),
    "deepseek_v3": Words("DeepseekV3ForCausalLM"),
    "gpt_oss": Words("GptOssForCausalLM", router="router", matrices=None),
}

_TOP = {
    "embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight",
}  # fmt: skip
_NORMS = {"norm_attention.weight": "input_layernorm.weight", "norm_ffn.weight": "post_attention_layernorm.weight"}
_GQA = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "query_norm": "q_norm",
    "key_norm": "k_norm",
}  # fmt: skip
_MLA = {
    "query": "q_proj", "query_down": "q_a_proj", "query_norm": "q_a_layernorm", "query_up": "q_b_proj",
    "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "output": "o_proj",
}  # fmt: skip
_MTP = {
    "norm_embed.weight": "enorm.weight", "norm_hidden.weight": "hnorm.weight", "project.weight": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}  # fmt: skip
_ROUTER = {"weight_ED": "weight", "bias_E": "bias", "expert_bias_E": "e_score_correction_bias"}
_FUSED: Mapping[str, tuple[str, Layout]] = {
    "gate_up_E2FD": ("gate_up_proj", "interleaved_transposed"), "down_EDF": ("down_proj", "transposed"),
    "gate_up_bias_E2F": ("gate_up_proj_bias", "interleaved"), "down_bias_ED": ("down_proj_bias", "same"),
}  # fmt: skip
UNUSED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors of old files that nobody reads any more."""


def pieces(name: str, shape: torch.Size, config: ModelConfig, family: str) -> tuple[Piece, ...]:
    """What one of our tensors is in a file.

    Args:
        name: a key of our state dict; shape: of that tensor.
        config: of the model; family: a key of `WORDS`.

    Raises ValueError for a name that no table holds.

    >>> from labkit.core.presets import preset
    >>> model, shape = preset("deepseek-v3"), torch.Size([8, 4])
    >>> [piece.name for piece in pieces("layers.3.ffn.shared.down_DF", shape, model, "deepseek_v3")]
    ['model.layers.3.mlp.shared_experts.down_proj.weight']
    """
    if name in _TOP:
        return (Piece(_TOP[name]),)
    found = re.fullmatch(r"(layers|mtp)\.(\d+)\.(.+)", name)
    if found is None:
        raise ValueError(f"{name!r} is no tensor of a Transformer that files have a name for")
    number, rest = int(found[2]), found[3]
    if found[1] == "mtp":
        number += config.num_layers
        rest = _MTP.get(rest, rest.removeprefix("block."))
        if rest in _MTP.values():
            return (Piece(f"model.layers.{number}.{rest}"),)
    return tuple(
        Piece(f"model.layers.{number}.{piece.name}", piece.where, piece.layout)
        for piece in _in_block(rest, shape, config, WORDS[family])
    )


def _in_block(rest: str, shape: torch.Size, config: ModelConfig, words: Words) -> list[Piece]:
    if rest in _NORMS:
        return [Piece(_NORMS[rest])]
    part, _, leaf = rest.rpartition(".")
    if rest == "attention.sinks":
        return [Piece("self_attn.sinks")]
    if part.startswith("attention."):
        table = _MLA if config.attention == "mla" else _GQA
        theirs = table.get(part.removeprefix("attention."))
        if theirs is not None and leaf in ("weight", "bias"):
            return [Piece(f"self_attn.{theirs}.{leaf}")]
    if part == "ffn.router" and leaf in _ROUTER:
        return [Piece(f"{words.moe}.{words.router}.{_ROUTER[leaf]}")]
    if part == "ffn.experts":
        return _experts(leaf, shape, words)
    if part in ("ffn", "ffn.shared") and leaf in ("gate_up_2FD", "down_DF"):
        owner = "mlp.shared_experts" if part == "ffn.shared" else "mlp"
        return _matrices(leaf == "down_DF", shape[0], owner, ("gate_proj", "up_proj", "down_proj"))
    raise ValueError(f"{rest!r} is no part of a block that files have a name for")


def _experts(leaf: str, shape: torch.Size, words: Words) -> list[Piece]:
    if words.matrices is None and leaf in _FUSED:
        name, layout = _FUSED[leaf]
        return [Piece(f"{words.moe}.experts.{name}", (), layout)]
    if words.matrices is None or leaf not in ("gate_up_E2FD", "down_EDF"):
        raise ValueError(f"files of {words.architecture} have no place for experts.{leaf}")
    found = []
    for expert in range(shape[0]):
        owner = f"{words.moe}.experts.{expert}"
        for piece in _matrices(leaf == "down_EDF", shape[1], owner, words.matrices):
            found.append(Piece(piece.name, (expert, *piece.where)))
    return found


def _matrices(is_down: bool, rows: int, owner: str, names: tuple[str, str, str]) -> list[Piece]:
    gate, up, down = (f"{owner}.{name}.weight" for name in names)
    if is_down:
        return [Piece(down)]
    return [Piece(gate, (slice(0, rows // 2),)), Piece(up, (slice(rows // 2, rows),))]
