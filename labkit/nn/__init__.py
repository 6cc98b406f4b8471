"""The sparse layer (`Router` decides, `Experts` computes, `MoE` composes) and the sparse `Transformer` made of it.

`trace` turns any model into records, `interop` reads and writes Hugging Face folders, `oracle` holds transformers' own
layers, `window` a small language model of sparse layers alone, `fixed` routers that do not learn.
"""

from labkit.nn.attention import Attention, LatentAttention
from labkit.nn.cache import KVCache
from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.hf_experts import use_kernels
from labkit.nn.model import Block, Transformer
from labkit.nn.moe import MoE
from labkit.nn.quant import quantize
from labkit.nn.router import Router
from labkit.nn.tracing import Labelled, trace
from labkit.nn.window import WindowModel

__all__ = [
    "Attention",
    "Block",
    "Experts",
    "KVCache",
    "Labelled",
    "LatentAttention",
    "MoE",
    "Router",
    "SwiGLU",
    "Transformer",
    "WindowModel",
    "quantize",
    "trace",
    "use_kernels",
]
