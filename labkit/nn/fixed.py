"""Routers that do not learn: by the token's number, at random, by frozen weights, always the same.

They are the baselines of a learned router: called like one, with the same experts and the same cost, but nothing that
happens in training moves what they decide. Their K scores are equal, with the sum `config.route_scale` (1), and their
records carry no gradient. Those without logits of their own report the plainest ones that explain the choice: ln(1/K)
for a chosen expert and `UNCHOSEN_GAP` = 30 nats less for the others, so that a softmax gives 1/K and (within 1e-13) 0,
and every metric stays finite. Layers that should differ need different seeds.

Legend: T tokens, D model width, E experts, K experts per token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels.reference import widen
from labkit.nn.router import Router, check_features

UNCHOSEN_GAP = 30.0


class FixedRouter(nn.Module):
    """What the routers without logits share: they say only which experts (`choose`).

    Raises ValueError for a configuration with settings that would have no effect here: a selection bias, a router bias,
    noise, or expert groups.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        idle = {"selection_bias": False, "router_bias": False, "noise_std": 0.0, "num_groups": 1}
        for name, off in idle.items():
            if getattr(config, name) != off:
                raise ValueError(
                    f"{type(self).__name__} chooses without logits, so {name}={getattr(config, name)} would do "
                    f"nothing; give config.replace({name}={off}{', top_groups=1' if name == 'num_groups' else ''})"
                )
        self.config = config

    def choose(self, num_tokens: int, ids_T: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """[T, K] int64 experts for T tokens; each kind of router has its own."""
        raise NotImplementedError

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
        """Decide for every token, called as `nn.Router.forward`.

        Args:
            x: [..., D], floating point; only its shape, dtype and device are read.
            layer, tokens, domains: labels that the record carries.
            generator: only `RandomRouter` draws from it; ids: only `HashRouter` reads them.

        Returns a `Routing` in float32 (float64 for float64 x). Raises ValueError if x does not end in D or is not
        floating point.
        """
        check_features(x, self.config.d_model)
        E, K = self.config.num_experts, self.config.top_k
        dtype = widen(x.new_empty(0)).dtype
        topk_ids_TK = self.choose(x.shape[:-1].numel(), ids, generator).to(x.device)
        chosen = -math.log(K)
        logits_TE = torch.full((len(topk_ids_TK), E), chosen - UNCHOSEN_GAP, dtype=dtype, device=x.device)
        logits_TE.scatter_(1, topk_ids_TK, chosen)
        scores_TK = _even_scores(topk_ids_TK, self.config, dtype)
        return Routing.of(logits_TE, topk_ids_TK, scores_TK, layer=layer, tokens=tokens, domains=domains)


class HashRouter(FixedRouter):
    """A token's number in the vocabulary decides, through a table drawn once.

    The random hash of Roller et al. 2021, "Hash Layers for Large Sparse Models" (arXiv 2106.04426), with K distinct
    experts a token. Its load is as uneven as the text: the experts of frequent tokens are busy.

    Args:
        config: sizes; vocab_size: V; seed: of the table.

    Buffer: `table_VK` [V, K] int64, the experts of each token id (transformers' `DeepseekV4HashRouter` calls it
    `tid2eid`). Another table of distinct experts may be copied into it.

    >>> router = HashRouter(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2), vocab_size=10)
    >>> r = router(torch.randn(3, 8), ids=torch.tensor([5, 1, 5]))
    >>> torch.equal(r.topk_ids_TK[0], r.topk_ids_TK[2])
    True
    """

    def __init__(self, config: MoEConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__(config)
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size!r}; give a whole number of 1 or more")
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("table_VK", _random_experts(vocab_size, config, draw))

    def choose(self, num_tokens: int, ids_T: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The table's rows for these ids. Raises ValueError without ids or if one is outside the vocabulary."""
        V = len(self.table_VK)
        if ids_T is None:
            raise ValueError("HashRouter decides by token ids; call it with ids=… of one whole number per token")
        if ids_T.numel() != num_tokens:
            raise ValueError(f"ids has {ids_T.numel()} elements for {num_tokens} tokens; give one each")
        if ids_T.is_floating_point() or ids_T.is_complex() or ids_T.dtype == torch.bool:
            raise ValueError(f"ids has dtype {ids_T.dtype}; give whole numbers")
        ids_T = ids_T.reshape(-1)
        if ids_T.device.type == "cpu" and num_tokens and (ids_T.min() < 0 or ids_T.max() >= V):
            raise ValueError(f"ids must lie in [0, {V}); got {int(ids_T.min())} to {int(ids_T.max())}")
        return self.table_VK[ids_T.to(self.table_VK.device, torch.int64)]

    def extra_repr(self) -> str:
        return f"vocab_size={len(self.table_VK)}, num_experts={self.config.num_experts}, top_k={self.config.top_k}"


class RandomRouter(FixedRouter):
    """K experts drawn anew for every token of every call, each set of K as likely as any other.

    Args:
        config: sizes; seed: of the router's own draws, which go on from call to call, in evaluation too. A `generator`
            given to a call is used instead.

    Left out on purpose: gradient checkpointing, which calls a layer twice and would draw twice.
    """

    def __init__(self, config: MoEConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed
        self.draws = torch.Generator().manual_seed(seed)

    def choose(self, num_tokens: int, ids_T: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Drawn from the generator, or from the router's own."""
        return _random_experts(num_tokens, self.config, self.draws if generator is None else generator)

    def extra_repr(self) -> str:
        return f"num_experts={self.config.num_experts}, top_k={self.config.top_k}, seed={self.seed}"


class StaticRouter(FixedRouter):
    """Every token goes to experts 0 … K−1: a dense layer of K experts, and the most uneven load there is."""

    def choose(self, num_tokens: int, ids_T: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The same row for each token."""
        return torch.arange(self.config.top_k).repeat(num_tokens, 1)

    def extra_repr(self) -> str:
        return f"num_experts={self.config.num_experts}, top_k={self.config.top_k}"


class FrozenRouter(Router):
    """A linear router with random weights that never learns; like tokens still go to the same experts.

    It chooses as `Router` does, with every setting of the configuration; the scores are equal all the same, and the
    logits in the record are its own, cut off from the gradient. As the inputs change in training, so may its choices.

    Args:
        config: sizes and how to choose; seed: of the weights.

    Buffers: `weight_ED` [E, D], which no optimiser sees; those of `Router`.

    >>> router = FrozenRouter(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2))
    >>> list(router.parameters())
    []
    """

    def __init__(self, config: MoEConfig, seed: int = 0) -> None:
        self.seed = seed
        super().__init__(config)
        for name, parameter in list(self.named_parameters(recurse=False)):
            delattr(self, name)
            self.register_buffer(name, parameter.detach())

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights that the seed gives, or those of a generator."""
        own = torch.Generator(self.weight_ED.device).manual_seed(self.seed)
        super().reset_parameters(own if generator is None else generator)

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
        """Decide for every token, as `Router.forward` does and with the same arguments and errors."""
        with torch.no_grad():
            r = super().forward(x, layer=layer, tokens=tokens, domains=domains, generator=generator, ids=ids)
        return dataclasses.replace(r, topk_scores_TK=_even_scores(r.topk_ids_TK, self.config, r.logits_TE.dtype))


def _random_experts(rows: int, config: MoEConfig, generator: torch.Generator) -> Tensor:
    """[rows, K] int64: distinct experts, every set as likely, from the generator on its device."""
    draws = torch.rand(rows, config.num_experts, generator=generator, device=generator.device)
    return draws.argsort(1)[:, : config.top_k].contiguous()


def _even_scores(topk_ids_TK: Tensor, config: MoEConfig, dtype: torch.dtype) -> Tensor:
    return torch.full(topk_ids_TK.shape, config.route_scale / config.top_k, dtype=dtype, device=topk_ids_TK.device)
