"""The sparse layer: decide, compute, add what is shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn.experts import Experts, SwiGLU
from labkit.nn.router import Router


class MoE(nn.Module):
    """A mixture-of-experts layer: `router`, `experts`, and `shared` (None without shared experts).

    Every token passes the shared experts, unweighted (DeepSeekMoE, section 3.2).

    Args:
        config: sizes and how to decide; implementation: of the experts, a name of `kernels.dispatch.names()` or "auto".
        router: any module that makes a `Routing` of x, such as those of `nn.fixed`; by default `Router(config)`.

    >>> layer = MoE(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2, num_shared_experts=1))
    >>> y, routing = layer(torch.randn(2, 3, 8), return_routing=True)
    >>> y.shape, routing.topk_ids_TK.shape
    (torch.Size([2, 3, 8]), torch.Size([6, 2]))
    """

    def __init__(self, config: MoEConfig, implementation: str = "auto", router: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config) if router is None else router
        self.experts = Experts(config, implementation)
        width = config.num_shared_experts * config.d_expert
        self.shared = SwiGLU(config.d_model, width) if width else None

    def forward(
        self,
        x: Tensor,
        return_routing: bool = False,
        *,
        layer: int | None = None,
        generator: torch.Generator | None = None,
        ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Routing]:
        """[..., D] to the same shape; with `return_routing` also what the router decided.

        Args:
            x: [..., D], floating point; ValueError otherwise.
            layer: a number that the record carries; generator: of the router's noise while training.
            ids: [...] int64, the token ids of x, for a router that decides by them (hash routing).
        """
        labels = {} if ids is None else {"ids": ids}
        routing = self.router(x, layer=layer, generator=generator, **labels)
        y = self.experts(x.reshape(routing.num_tokens, x.shape[-1]), routing).reshape(x.shape)
        if self.shared is not None:
            y = y + self.shared(x)
        return (y, routing) if return_routing else y
