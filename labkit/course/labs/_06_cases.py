"""Lab 06: right answers, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.given import FeedForward, Mixer, Norm, Rotary, input_gradient

Layer = Callable[[Tensor], Tensor]


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ------------------------------------------------------------------------------------------------------------- block


def block(x_BSD: Tensor, norm_attention: Layer, attention: Layer, norm_ffn: Layer, ffn: Layer) -> Tensor:
    x_BSD = x_BSD + attention(norm_attention(x_BSD))
    return x_BSD + ffn(norm_ffn(x_BSD))


def block_cases(seed: int) -> list[Case]:
    def layer(at: int, B: int, S: int, D: int, F: int = 3) -> tuple[Tensor | Layer, ...]:
        norms = [Norm(1.5 + _normal(at + i, D, scale=0.5)) for i in (1, 2)]
        mixer = Mixer(_normal(at + 3, D, D))
        ffn = FeedForward(_normal(at + 4, 2 * F, D), _normal(at + 5, D, F))
        return 2 * _normal(at, B, S, D), norms[0], mixer, norms[1], ffn

    return [
        Case(layer(seed, 1, 1, 3), label="one token"),
        Case(layer(seed + 10, 1, 4, 3), label="one sequence of four tokens"),
        Case(layer(seed + 20, 3, 5, 7, 2), label="ugly sizes"),
        Case(layer(seed + 30, 2, 3, 4), label="gradients flow back", needs_grad=True),
        Case(
            layer(seed + 40, 1, 3, 4),
            label="the gradient at x, of the sum of 1, 2, 3, … times the outputs",
            through=input_gradient,
        ),
    ]


# --------------------------------------------------------------------------------------------------------- placement


def placement(
    num_layers: int, num_dense: int, every: int, d_model: int, d_dense: int, d_expert: int, num_experts: int,
    top_k: int, num_shared: int = 0,
) -> tuple[list[int], int, int]:  # fmt: skip
    sparse = [i for i in range(num_layers) if i >= num_dense and (i + 1) % every == 0]
    expert = 3 * d_model * d_expert
    always = (num_layers - len(sparse)) * 3 * d_model * d_dense
    always += len(sparse) * (num_experts * d_model + num_shared * expert)
    return sparse, always + len(sparse) * num_experts * expert, always + len(sparse) * top_k * expert


def placement_cases(seed: int) -> list[Case]:
    g = torch.Generator().manual_seed(seed)
    layers, width, dense, narrow = (int(torch.randint(low, 2 * low, (1,), generator=g)) for low in (9, 16, 40, 5))
    return [
        Case((4, 0, 1, 8, 24, 6, 4, 2), label="every layer sparse"),
        Case((4, 1, 1, 8, 24, 6, 4, 2, 1), label="the first layer dense, one shared expert"),
        Case((6, 0, 2, 8, 24, 6, 4, 2), label="every second layer sparse"),
        Case((9, 3, 2, 8, 24, 6, 8, 3), label="three dense layers, then every second"),
        Case((7, 2, 3, 10, 31, 7, 5, 1, 2), label="two dense layers, then every third, two shared experts"),
        Case((3, 0, 4, 8, 24, 6, 4, 2), label="no layer comes out sparse"),
        Case((5, 1, 1, 8, 24, 6, 4, 4), label="K = E"),
        Case((layers, 2, 1, width, dense, narrow, 12, 5, 1), label="sizes from the seed"),
        Case((61, 3, 1, 7168, 18_432, 2048, 256, 8, 1), label="DeepSeek-V3"),
    ]


# ------------------------------------------------------------------------------------------------------- cached_step


def cached_step(
    query_BH1d: Tensor, key_BG1d: Tensor, value_BG1d: Tensor, keys_BGSd: Tensor, values_BGSd: Tensor, real_BS: Tensor,
    rotate: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    position_B1 = real_BS.sum(dim=1, keepdim=True)
    keys = torch.cat([keys_BGSd, rotate(key_BG1d, position_B1)], dim=2)
    values = torch.cat([values_BGSd, value_BG1d], dim=2)
    seen = F.pad(real_BS, (0, 1), value=True)[:, None, None]
    shared_by, d = query_BH1d.shape[1] // key_BG1d.shape[1], query_BH1d.shape[-1]
    logits = rotate(query_BH1d, position_B1) @ keys.repeat_interleave(shared_by, dim=1).mT / math.sqrt(d)
    weights = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return weights @ values.repeat_interleave(shared_by, dim=1), keys, values


def cached_cases(seed: int) -> list[Case]:
    def step(at: int, H: int, G: int, d: int, *real: list[int]) -> tuple:
        """One step after the rows of `real`: 1 for a token, 0 for padding."""
        rotate, real_BS = Rotary(30.0), torch.tensor(real).bool()
        B, S = real_BS.shape
        keys = rotate(_normal(at, B, G, S, d), (real_BS.cumsum(1) - 1).clamp_min(0))
        new = (_normal(at + i, B, n, 1, d) for i, n in ((1, H), (2, G), (3, G)))
        return *new, keys, _normal(at + 4, B, G, S, d), real_BS, rotate

    return [
        Case(step(seed, 1, 1, 2, [1]), label="one cached token, one head"),
        Case(step(seed + 10, 2, 2, 4, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]), label="no padding"),
        Case(step(seed + 20, 2, 2, 4, [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]), label="left padding"),
        Case(step(seed + 30, 6, 2, 4, [1, 1, 1], [0, 0, 1]), label="three query heads share a key head"),
        Case(step(seed + 40, 4, 1, 6, [0] * 6 + [1], [1] * 7), label="one key head, a prompt of one token"),
        Case(step(seed + 50, 2, 1, 4, []), label="an empty cache: the first token of all"),
        Case(step(seed + 60, 2, 2, 4, [0, 1, 1]), label="gradients flow back", needs_grad=True),
    ]


# ---------------------------------------------------------------------------------------------------------- name_map


def name_map(
    theirs: dict[str, Tensor], renames: dict[str, str], num_layers: int, num_dense: int, num_experts: int
) -> dict[str, Tensor]:
    left, ours = dict(theirs), {}

    def take(name: str) -> Tensor:
        if name not in left:
            raise ValueError(f"{name} is missing")
        return left.pop(name)

    def swiglu(stem: str) -> tuple[Tensor, Tensor]:
        gate_up = torch.cat([take(f"{stem}.gate_proj.weight"), take(f"{stem}.up_proj.weight")])
        return gate_up, take(f"{stem}.down_proj.weight")

    for their, mine in renames.items():
        for i in range(num_layers if "{i}" in their else 1):
            ours[mine.format(i=i)] = take(their.format(i=i))
    for i in range(num_layers):
        stem, ffn = f"model.layers.{i}.mlp", f"layers.{i}.ffn"
        if i < num_dense:
            ours[f"{ffn}.gate_up_2FD"], ours[f"{ffn}.down_DF"] = swiglu(stem)
            continue
        ours[f"{ffn}.router.weight_ED"] = take(f"{stem}.gate.weight")
        gate_ups, downs = zip(*[swiglu(f"{stem}.experts.{e}") for e in range(num_experts)], strict=True)
        ours[f"{ffn}.experts.gate_up_E2FD"], ours[f"{ffn}.experts.down_EDF"] = torch.stack(gate_ups), torch.stack(downs)
    if left:
        raise ValueError(f"nothing here is made of {', '.join(sorted(left))}")
    return ours


RENAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "layers.{i}.norm_attention.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "layers.{i}.attention.query.weight",
    "model.layers.{i}.self_attn.k_proj.weight": "layers.{i}.attention.key.weight",
    "model.layers.{i}.self_attn.v_proj.weight": "layers.{i}.attention.value.weight",
    "model.layers.{i}.self_attn.o_proj.weight": "layers.{i}.attention.output.weight",
    "model.layers.{i}.self_attn.q_norm.weight": "layers.{i}.attention.query_norm.weight",
    "model.layers.{i}.self_attn.k_norm.weight": "layers.{i}.attention.key_norm.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.norm_ffn.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}


def qwen3_tensors(seed: int, num_layers: int, num_dense: int, num_experts: int, F: int = 2) -> dict[str, Tensor]:
    """The tensors of a small Qwen3-MoE as its files name them; width 4, two heads of width 2, five tokens."""
    shapes: dict[str, tuple[int, ...]] = {}
    for their in RENAMES:
        narrow = "q_norm" in their or "k_norm" in their
        shape = (5, 4) if "embed" in their or "head" in their else (2,) if narrow else (4,)
        shape = (4, 4) if "_proj" in their else shape
        shapes |= {their.format(i=i): shape for i in range(num_layers if "{i}" in their else 1)}
    for i in range(num_layers):
        stem = f"model.layers.{i}.mlp"
        parts = [""] if i < num_dense else [f".experts.{e}" for e in range(num_experts)]
        for name, shape in (("gate", (F, 4)), ("up", (F, 4)), ("down", (4, F))):
            shapes |= {f"{stem}{part}.{name}_proj.weight": shape for part in parts}
        if i >= num_dense:
            shapes[f"{stem}.gate.weight"] = (num_experts, 4)
    return {name: _normal(seed + n, *shape) for n, (name, shape) in enumerate(sorted(shapes.items()))}


def names_cases(seed: int) -> list[Case]:
    def whole(at: int, L: int, dense: int, E: int, F: int = 2) -> tuple:
        return qwen3_tensors(at, L, dense, E, F), RENAMES, L, dense, E

    def spoilt(label: str, lost: str = "", more: str = "", L: int = 1, dense: int = 0, E: int = 2) -> Case:
        tensors, *rest = whole(seed + 500, L, dense, E)
        tensors = {name: tensor for name, tensor in tensors.items() if name != lost}
        return Case((tensors | ({more: torch.ones(2)} if more else {}), *rest), label=f"{label}: ValueError")

    return [
        Case(whole(seed, 1, 0, 1), label="one layer, one expert"),
        Case(whole(seed + 100, 2, 0, 3), label="two sparse layers"),
        Case(whole(seed + 200, 3, 1, 2, 4), label="the first of three layers dense, F = D"),
        Case(whole(seed + 300, 1, 0, 12, 3), label="twelve experts: 10 and 11 stand before 2 in a sorted list"),
        Case(whole(seed + 400, 2, 2, 0), label="every layer dense"),
        spoilt("an expert lacks its up", lost="model.layers.0.mlp.experts.1.up_proj.weight"),
        spoilt("a norm is missing", lost="model.norm.weight"),
        spoilt("an expert too many", more="model.layers.0.mlp.experts.2.gate_proj.weight"),
        spoilt("a tensor that nobody knows", more="model.layers.0.self_attn.rotary_emb.inv_freq"),
        spoilt("a layer too many", more="model.layers.1.input_layernorm.weight"),
    ]


# ------------------------------------------------------------------------------------------------------------ sample


def sample(logits_BV: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; give a positive number, or decode greedily")
    logits_BV = logits_BV / temperature
    if top_k > 0:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if top_p < 1:
        rising_BV, order_BV = logits_BV.sort(dim=1)
        out_BV = rising_BV.softmax(dim=1).cumsum(dim=1) <= 1 - top_p
        out_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), float("-inf"))
    return logits_BV.softmax(dim=1)


def sample_cases(seed: int) -> list[Case]:
    hand = torch.tensor([[0.40, 0.30, 0.20, 0.10]]).log()
    mixed = torch.tensor([[0.02, 0.45, 0.08, 0.25, 0.14, 0.06], [0.17, 0.16, 0.18, 0.15, 0.14, 0.20]]).log()
    tied = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    return [
        Case((hand,), label="nothing is filtered"),
        Case((hand, 0.5), label="temperature alone"),
        Case((hand, 1.0, 2), label="top-k alone"),
        Case((hand, 1.0, 0, 0.6), label="top-p alone"),
        Case((mixed, 2.0, 0, 0.7), label="temperature, then top-p"),
        Case((mixed, 1.0, 4, 0.8), label="top-k, then top-p of what is left"),
        Case((mixed, 0.7, 5, 0.65), label="all three"),
        Case((tied, 1.0, 2), label="a tie at the k-th place: all of it stays"),
        Case((hand, 1.0, 9), label="K larger than the vocabulary"),
        Case((mixed, 1.0, 0, 0.1), label="the best token alone exceeds p"),
        Case((mixed, 1.0, 0, 0.0), label="p = 0: the best token stays"),
        Case((_normal(seed, 3, 50, scale=2.0), 0.8, 20, 0.9), label="a vocabulary of fifty"),
        Case((_normal(seed + 1, 2, 11), 3.0, 0, 0.5), label="hot"),
        Case((hand, 0.0), label="temperature 0: ValueError"),
    ]
