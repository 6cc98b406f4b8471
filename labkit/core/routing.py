"""The one record that travels: what a router decided for a batch of tokens.

Metrics, losses, kernels, checks, figures and widgets read this and nothing else, wherever it came from.

Legend: T tokens (all batch positions, flattened), E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import compress

import torch
from torch import Tensor

from labkit.core.padding import real_tokens


@dataclass(frozen=True, eq=False)
class Routing:
    """One layer's decisions for T tokens.

    Args:
        logits_TE: the router's raw outputs, before any score function; floating point.
        topk_ids_TK: the chosen experts, best first, each in [0, E); int64, distinct within a row.
        topk_scores_TK: the weight each chosen expert's output gets; floating point.
        tokens_per_expert_E: how many tokens chose each expert; int64. `Routing.of` counts them.
        layer: which layer of the model decided, counted from 0.
        tokens: the text of each token, T strings.
        domains: the label of each token ("code", "english", …), T strings.
        sequence_T: which sequence of the batch each token belongs to; [T], int64. Tokens of a sequence are neighbours.
        loss_T: the model's loss on predicting what follows each token, in nats; [T], NaN where nothing follows.

    Padding has no place in a record: `keep` leaves it out.
    Raises ValueError if a shape or a dtype does not fit the others and, on the CPU, if an expert number, a repeated
    choice or a count is wrong.

    >>> r = Routing.of(torch.zeros(2, 4), torch.tensor([[0, 1], [1, 3]]), torch.full((2, 2), 0.5))
    >>> r.tokens_per_expert_E.tolist()
    [1, 2, 0, 1]
    """

    logits_TE: Tensor
    topk_ids_TK: Tensor
    topk_scores_TK: Tensor
    tokens_per_expert_E: Tensor
    layer: int | None = None
    tokens: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    sequence_T: Tensor | None = None
    loss_T: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits_TE.ndim != 2:
            raise ValueError(
                f"Routing.logits_TE has shape {tuple(self.logits_TE.shape)}; flatten it to (tokens, experts)"
            )
        T, E = self.logits_TE.shape
        ids, scores, counts = self.topk_ids_TK, self.topk_scores_TK, self.tokens_per_expert_E
        if ids.ndim != 2 or ids.shape[0] != T:
            raise ValueError(f"Routing.topk_ids_TK has shape {tuple(ids.shape)}; expected ({T}, K)")
        if scores.shape != ids.shape:
            raise ValueError(f"Routing.topk_scores_TK has shape {tuple(scores.shape)}; expected {tuple(ids.shape)}")
        if ids.dtype != torch.int64:
            raise ValueError(f"Routing.topk_ids_TK has dtype {ids.dtype}; give torch.int64")
        if not (self.logits_TE.is_floating_point() and scores.is_floating_point()):
            raise ValueError("Routing.logits_TE and topk_scores_TK must be floating point")
        if counts.shape != (E,):
            raise ValueError(f"Routing.tokens_per_expert_E has shape {tuple(counts.shape)}; expected ({E},)")
        if ids.device.type == "cpu":  # on a GPU, reading the values would make every layer wait for the device
            self._check_values()
        for name, labels in (("tokens", self.tokens), ("domains", self.domains)):
            if labels is not None and len(labels) != T:
                raise ValueError(f"Routing.{name} has {len(labels)} labels for {T} tokens")
        for name, values in (("sequence_T", self.sequence_T), ("loss_T", self.loss_T)):
            if values is not None and values.shape != (T,):
                raise ValueError(f"Routing.{name} has shape {tuple(values.shape)}; expected ({T},)")
        if self.sequence_T is not None and self.sequence_T.dtype != torch.int64:
            raise ValueError(f"Routing.sequence_T has dtype {self.sequence_T.dtype}; give torch.int64")
        if self.loss_T is not None and not self.loss_T.is_floating_point():
            raise ValueError(f"Routing.loss_T has dtype {self.loss_T.dtype}; give floating point")

    def _check_values(self) -> None:
        ids, E = self.topk_ids_TK, self.num_experts
        if ids.numel() and (ids.min() < 0 or ids.max() >= E):
            raise ValueError(f"Routing.topk_ids_TK must lie in [0, {E}); got {int(ids.min())} to {int(ids.max())}")
        ordered = ids.sort(dim=1).values
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("Routing.topk_ids_TK gives one token the same expert twice; choose K different experts")
        if not torch.equal(self.tokens_per_expert_E.cpu(), torch.bincount(ids.reshape(-1), minlength=E)):
            raise ValueError("Routing.tokens_per_expert_E does not count topk_ids_TK; build the record with Routing.of")

    @classmethod
    def of(
        cls,
        logits_TE: Tensor,
        topk_ids_TK: Tensor,
        topk_scores_TK: Tensor,
        *,
        layer: int | None = None,
        tokens: tuple[str, ...] | None = None,
        domains: tuple[str, ...] | None = None,
        sequence_T: Tensor | None = None,
        loss_T: Tensor | None = None,
    ) -> Routing:
        """The record of these decisions, with the tokens of each expert counted."""
        if logits_TE.ndim != 2:
            raise ValueError(f"logits_TE has shape {tuple(logits_TE.shape)}; flatten it to (tokens, experts)")
        E = logits_TE.shape[1]
        ids = topk_ids_TK.reshape(-1)
        if ids.dtype != torch.int64:
            raise ValueError(f"topk_ids_TK has dtype {ids.dtype}; give torch.int64")
        if ids.device.type == "cpu" and ids.numel() and (ids.min() < 0 or ids.max() >= E):
            raise ValueError(f"topk_ids_TK must lie in [0, {E}); got {int(ids.min())} to {int(ids.max())}")
        counts_E = torch.zeros(E, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))
        return cls(logits_TE, topk_ids_TK, topk_scores_TK, counts_E, layer, tokens, domains, sequence_T, loss_T)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.logits_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.logits_TE.shape[1]

    @property
    def top_k(self) -> int:
        """K."""
        return self.topk_ids_TK.shape[1]

    def keep(self, mask_T: Tensor) -> Routing:
        """The record of these tokens alone, counted anew; gradients still flow.

        Args:
            mask_T: [T] or any shape of T elements (an attention mask [B, S]), true or 1 where a token is real.

        Raises ValueError for another number of elements, and for other values than 0 and 1.

        >>> r = Routing.of(torch.zeros(2, 3), torch.tensor([[0], [2]]), torch.ones(2, 1), tokens=("a", "pad"))
        >>> r.keep(torch.tensor([True, False])).tokens_per_expert_E.tolist()
        [1, 0, 0]
        """
        mask_T = real_tokens(mask_T, self.num_tokens, self.logits_TE.device)
        kept = mask_T.tolist() if self.tokens is not None or self.domains is not None else []
        return Routing.of(
            self.logits_TE[mask_T], self.topk_ids_TK[mask_T], self.topk_scores_TK[mask_T], layer=self.layer,
            tokens=None if self.tokens is None else tuple(compress(self.tokens, kept)),
            domains=None if self.domains is None else tuple(compress(self.domains, kept)),
            sequence_T=None if self.sequence_T is None else self.sequence_T[mask_T],
            loss_T=None if self.loss_T is None else self.loss_T[mask_T],
        )  # fmt: skip

    def detach(self) -> Routing:
        """The same record on the CPU, without gradients: what figures and widgets keep."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Routing(**{k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in values.items()})
