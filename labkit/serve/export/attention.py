"""Attention in ONNX's words: grouped queries and latents, with the past going in and the present coming out.

Latent attention is written in its absorbed form only (see `nn.latent`), so that one graph serves prompts and single
steps and only latents are kept. Its products grow by (R + r) / head width on a long prompt; results are the same.

Shape suffixes: T tokens (B·S), B batch, S new positions, K all positions, H query heads, G key heads, d head width,
R latent rank, r rotary width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.nn.attention import Attention
from labkit.nn.latent import LatentAttention
from labkit.nn.rope import attention_factor, inverse_frequencies
from labkit.serve.export.graph import Graph, Value


@dataclass(frozen=True)
class Around:
    """What all layers share, by the names of the values: sizes, rotary tables, who may look at whom.

    Args:
        batch, length: B and S as tensors of one number.
        cos, sin: [B, 1, S, d/2]. masks: bool [B, 1, S, K] by whether a layer slides.
    """

    batch: str
    length: str
    cos: str
    sin: str
    masks: dict[bool, str]


def past_of(config: ModelConfig, layer: int, word: str = "past_key_values") -> tuple[Value, Value]:
    """What one layer keeps: keys and values [B, G, P, d], or latents [B, P, R] and rotary keys [B, P, r].

    >>> from labkit.core.presets import preset
    >>> [value.name for value in past_of(preset("olmoe-1b-7b"), 0)]
    ['past_key_values.0.key', 'past_key_values.0.value']
    """
    length = "past" if word == "past_key_values" else "total"
    if config.attention == "mla":
        kinds = {"latent": ("batch", length, config.mla_kv_rank), "rope_key": ("batch", length, config.mla_rope_dim)}
    else:
        shape = ("batch", config.num_kv_heads, length, config.head_dim)
        kinds = {"key": shape, "value": shape}
    first, second = (Value(f"{word}.{layer}.{kind}", "FLOAT", dims) for kind, dims in kinds.items())
    return first, second


def around(graph: Graph, config: ModelConfig, ids: str, attention_mask: str) -> Around:
    """Positions count the real tokens, as in `nn.Transformer`; padding sees itself, and nobody else sees it."""
    length, total = graph.size(ids, 1), graph.size(attention_mask, 1)
    start, zero, one = graph.op("Sub", total, length), graph.constant(0), graph.constant(1)
    counted = graph.op("Sub", graph.op("CumSum", attention_mask, one), one)
    positions = graph.op("Slice", graph.op("Max", counted, zero), start, total, graph.constant([1]))
    columns = graph.op("Cast", graph.op("Unsqueeze", positions, graph.constant([1, 3])), to=1)
    angles = graph.op("Mul", columns, graph.constant(inverse_frequencies(config)))
    factor = graph.constant(float(attention_factor(config.yarn)))
    cos, sin = (graph.op("Mul", graph.op(kind, angles), factor) for kind in ("Cos", "Sin"))
    key = graph.op("Range", zero, graph.op("Squeeze", total), one)
    query = graph.op("Unsqueeze", graph.op("Slice", key, start, total, graph.constant([0])), graph.constant([1]))
    real = graph.op("Unsqueeze", graph.op("Cast", attention_mask, to=9), graph.constant([1, 2]))
    masks = {}
    for slides in sorted({config.slides(layer) for layer in range(config.num_layers)}):
        seen = graph.op("LessOrEqual", key, query)
        if slides:
            edge = graph.op("Sub", query, graph.constant(config.sliding_window))
            seen = graph.op("And", seen, graph.op("Greater", key, edge))
        masks[slides] = graph.op("Or", graph.op("And", seen, real), graph.op("Equal", key, query))
    return Around(graph.size(ids, 0), length, cos, sin, masks)


def attention(
    graph: Graph, module: Attention | LatentAttention, x_TD: str, shared: Around, mask: str, past: tuple[str, str]
) -> tuple[str, tuple[str, str]]:
    """One layer's attention, [T, D] to [T, D], and what it keeps now."""
    write = _latent if isinstance(module, LatentAttention) else _grouped
    y, kept = write(graph, module, x_TD, shared, mask, past)
    width = module.output.in_features
    y_TD = graph.reshape(graph.transpose(y, 0, 2, 1, 3), -1, width)
    return _linear(graph, y_TD, "output", module.output), kept


def _grouped(
    graph: Graph, module: Attention, x_TD: str, shared: Around, mask: str, past: tuple[str, str]
) -> tuple[str, tuple[str, str]]:
    c, ready = module.config, {}
    for name, heads in (("query", c.num_heads), ("key", c.num_kv_heads), ("value", c.num_kv_heads)):
        norm = getattr(module, f"{name}_norm", None)
        y = _linear(graph, x_TD, name, getattr(module, name))
        if norm is not None and c.qk_norm == "full":
            y = graph.rms_norm(y, f"{name}_norm", norm.weight, norm.eps)
        y = _heads(graph, y, shared, heads, c.head_dim)
        if norm is not None and c.qk_norm == "head":
            y = graph.rms_norm(y, f"{name}_norm", norm.weight, norm.eps)
        ready[name] = y if name == "value" else _rotate(graph, y, shared, c.rope_interleaved, c.head_dim)
    key, value = (
        graph.op("Concat", old, ready[name], axis=2) for name, old in zip(("key", "value"), past, strict=True)
    )
    y = _attend(
        graph, ready["query"], key, value, mask, module.scale, c.num_heads, c.num_kv_heads, shared, module.sinks
    )
    return y, (key, value)


def _latent(
    graph: Graph, module: LatentAttention, x_TD: str, shared: Around, mask: str, past: tuple[str, str]
) -> tuple[str, tuple[str, str]]:
    c = module.config
    if c.mla_q_rank:
        down = _linear(graph, x_TD, "query_down", module.query_down)
        down = graph.rms_norm(down, "query_norm", module.query_norm.weight, module.query_norm.eps)
        query = _linear(graph, down, "query_up", module.query_up)
    else:
        query = _linear(graph, x_TD, "query", module.query)
    query = _heads(graph, query, shared, c.num_heads, c.head_dim)
    nope, rope = graph.split(query, [c.mla_nope_dim, c.mla_rope_dim])
    rope = _rotate(graph, rope, shared, c.rope_interleaved, c.mla_rope_dim)
    both = _linear(graph, x_TD, "kv_down", module.kv_down)
    latent, key = graph.split(both, [c.mla_kv_rank, c.mla_rope_dim])
    latent = graph.rms_norm(latent, "kv_norm", module.kv_norm.weight, module.kv_norm.eps)
    latent = graph.reshape(latent, shared.batch, shared.length, c.mla_kv_rank)
    key = _rotate(graph, _heads(graph, key, shared, 1, c.mla_rope_dim), shared, c.rope_interleaved, c.mla_rope_dim)
    key = graph.op("Squeeze", key, graph.constant([1]))
    kept = tuple(graph.op("Concat", old, new, axis=1) for old, new in zip(past, (latent, key), strict=True))
    up_HnR, up_HvR = module.kv_up.weight.unflatten(0, (c.num_heads, -1)).split([c.mla_nope_dim, c.mla_v_dim], dim=1)
    query = graph.op("Concat", graph.op("MatMul", nope, graph.weight("kv_up.key", up_HnR)), rope, axis=-1)
    one = graph.constant([1])
    latent_B1KR = graph.op("Unsqueeze", kept[0], one)
    key_B1Kd = graph.op("Concat", latent_B1KR, graph.op("Unsqueeze", kept[1], one), axis=-1)
    y = _attend(graph, query, key_B1Kd, latent_B1KR, mask, module.scale, c.num_heads, 1, shared)
    return graph.op("MatMul", y, graph.weight("kv_up.value", up_HvR.mT)), kept


def _attend(
    graph: Graph, query: str, key: str, value: str, mask: str, scale: float, heads: int, groups: int, shared: Around,
    sinks: Tensor | None = None,
) -> str:  # fmt: skip
    """Softmax of scaled products times the values; queries of heads that share a key stand beneath each other."""
    query = graph.reshape(graph.op("Mul", query, graph.constant(float(scale))), shared.batch, groups, -1, 0)
    scores = graph.op("MatMul", query, graph.transpose(key, 0, 1, 3, 2))
    scores_BHSK = graph.reshape(scores, shared.batch, heads, shared.length, 0)
    scores_BHSK = graph.op("Where", mask, scores_BHSK, graph.constant(-math.inf))
    if sinks is None:
        shares = graph.op("Softmax", scores_BHSK, axis=-1)
    else:
        one = graph.constant([1])
        column = graph.op("Concat", shared.batch, one, shared.length, one, axis=0)
        sink = graph.op("Expand", graph.weight("sinks", sinks.view(1, -1, 1, 1)), column)
        shares = graph.op("Softmax", graph.op("Concat", scores_BHSK, sink, axis=-1), axis=-1)
        shares = graph.op("Slice", shares, graph.constant([0]), graph.constant([-1]), graph.constant([-1]))
    grouped = graph.op("Reshape", shares, graph.op("Shape", scores))
    return graph.reshape(graph.op("MatMul", grouped, value), shared.batch, heads, shared.length, 0)


def _linear(graph: Graph, x_TD: str, name: str, module: nn.Linear) -> str:
    return graph.linear(x_TD, name, module.weight, module.bias)


def _heads(graph: Graph, x: str, shared: Around, heads: int, width: int) -> str:
    """[T, H·d] to [B, H, S, d]."""
    return graph.transpose(graph.reshape(x, shared.batch, shared.length, heads, width), 0, 2, 1, 3)


def _rotate(graph: Graph, x_BHSd: str, shared: Around, interleaved: bool, width: int) -> str:
    """Each pair of dimensions turned by its position's angle, as `nn.rope.rotate`."""
    half, last = width // 2, graph.constant([-1])
    if interleaved:
        pairs = graph.reshape(x_BHSd, 0, 0, 0, half, 2)
        first, second = (graph.op("Squeeze", part, last) for part in graph.split(pairs, [1, 1]))
    else:
        first, second = graph.split(x_BHSd, [half, half])
    cos, sin = shared.cos, shared.sin
    turned = [
        graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin)),
        graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin)),
    ]
    if not interleaved:
        return graph.op("Concat", *turned, axis=-1)
    pairs = graph.op("Concat", *(graph.op("Unsqueeze", part, last) for part in turned), axis=-1)
    return graph.reshape(pairs, 0, 0, 0, width)
