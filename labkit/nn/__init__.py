"""The sparse layer: `Router` decides, `Experts` computes, `MoE` composes; `trace` turns any model into records.

`oracle` holds transformers' own layers, `window` a small language model of sparse layers, `fixed` routers that do not
learn.
"""

from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.moe import MoE
from labkit.nn.router import Router
from labkit.nn.tracing import Labelled, trace
from labkit.nn.window import WindowModel

__all__ = ["Experts", "Labelled", "MoE", "Router", "SwiGLU", "WindowModel", "trace"]
