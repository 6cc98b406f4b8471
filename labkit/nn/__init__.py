"""The sparse layer as modules: `Router` decides, `Experts` computes, `MoE` composes."""

from labkit.nn.router import Router

__all__ = ["Router"]
