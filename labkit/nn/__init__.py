"""The sparse layer: `Router` decides, `Experts` computes, `MoE` composes; `oracle` holds transformers' own."""

from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.moe import MoE
from labkit.nn.router import Router

__all__ = ["Experts", "MoE", "Router", "SwiGLU"]
