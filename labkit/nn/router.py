"""The router decides: a linear layer, a score function, a choice. Nothing here computes an expert.

Left out on purpose: balancing (see `train.balance`, which moves `expert_bias_E`), capacity (`core.capacity`), routers
that do not learn (`nn.fixed`) and expert choice (`train.expert_choice`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels.reference import widen
from labkit.kernels.routes import route


def check_features(x: Tensor, d_model: int) -> None:
    """Raise ValueError unless x is [..., D] in floating point: what every router is called with."""
    if x.ndim == 0 or x.shape[-1] != d_model:
        raise ValueError(f"x has shape {tuple(x.shape)}; the last dimension must be d_model = {d_model}")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; give floating point (embed token ids first)")


class Router(nn.Module):
    """Which K experts each token goes to, and how much each of them counts.

    Parameters: `weight_ED` [E, D]; `bias_E` [E] if `config.router_bias`, added to the logits and learned.
    Buffer: `expert_bias_E` [E], float32, if `config.selection_bias`: it moves the choice only and gets no gradient.
    Logits are computed in float32 (float64 for a float64 module), also under autocast. The weights start normal with
    deviation D^-0.5, so that inputs of unit variance get logits of unit variance.

    >>> _ = torch.manual_seed(0)
    >>> router = Router(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2))
    >>> router(torch.randn(3, 5, 8)).topk_ids_TK.shape
    torch.Size([15, 2])
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        E, D = config.num_experts, config.d_model
        self.weight_ED = nn.Parameter(torch.empty(E, D))
        self.bias_E = nn.Parameter(torch.empty(E)) if config.router_bias else None
        self.register_buffer("expert_bias_E", torch.zeros(E) if config.selection_bias else None)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights again; biases go back to zero."""
        nn.init.normal_(self.weight_ED, std=self.config.d_model**-0.5, generator=generator)
        for bias_E in (self.bias_E, self.expert_bias_E):
            if bias_E is not None:
                nn.init.zeros_(bias_E)

    def forward(
        self,
        x: Tensor,
        *,
        layer: int | None = None,
        tokens: tuple[str, ...] | None = None,
        domains: tuple[str, ...] | None = None,
        generator: torch.Generator | None = None,
        ids: Tensor | None = None,
    ) -> Routing:
        """Decide for every token.

        Args:
            x: [..., D], floating point; all leading dimensions are flattened into T in the record.
            layer, tokens, domains: labels that the record carries.
            generator: draws the noise (only while training, and only if `config.noise_std` > 0).
            ids: token ids, which every router is handed and only a hash router (`nn.fixed`) reads.

        Returns a `Routing` whose logits include the noise, so that the decision follows from the record.
        Raises ValueError if x does not end in D or is not floating point.
        """
        logits_TE = self._noisy(self.logits(x), generator)
        topk_ids_TK, topk_scores_TK = self.decide(logits_TE)
        return Routing.of(logits_TE, topk_ids_TK, topk_scores_TK, layer=layer, tokens=tokens, domains=domains)

    def logits(self, x: Tensor) -> Tensor:
        """The linear layer alone: [..., D] to [T, E], in float32 or wider."""
        D = self.config.d_model
        check_features(x, D)
        x_TD = widen(x).reshape(x.shape[:-1].numel(), D)
        bias_E = None if self.bias_E is None else self.bias_E.to(x_TD.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x_TD, self.weight_ED.to(x_TD.dtype), bias_E)

    def decide(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and scores for these logits, as the configuration says (`kernels.routes`)."""
        c = self.config
        ids_TK, scores_TK, _ = route(
            logits_TE, top_k=c.top_k, score_fn=c.score_fn, norm_topk=c.norm_topk, route_scale=c.route_scale,
            bias_E=self.expert_bias_E, num_groups=c.num_groups, top_groups=c.top_groups, group_score=c.group_score,
        )  # fmt: skip
        return ids_TK, scores_TK

    def _noisy(self, logits_TE: Tensor, generator: torch.Generator | None) -> Tensor:
        std = self.config.noise_std
        if not (self.training and std):
            return logits_TE
        noise = torch.randn(logits_TE.shape, generator=generator, dtype=logits_TE.dtype, device=logits_TE.device)
        return logits_TE + std * noise

    def extra_repr(self) -> str:
        c = self.config
        return f"d_model={c.d_model}, num_experts={c.num_experts}, top_k={c.top_k}, score_fn={c.score_fn!r}"
