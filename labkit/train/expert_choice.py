"""Experts choose tokens: every expert is full, and a token gets as many experts as want it.

Left out on purpose: the variant that limits how many experts may take one token, and a causal form. An expert compares
tokens of the whole batch, later ones included, so a model trained so has seen the future of each token.

Legend: T tokens, E experts, C capacity (tokens per expert).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.padding import real_tokens


@dataclass(frozen=True, eq=False)
class ExpertChoice:
    """Which tokens each expert took.

    Args:
        token_ids_EC: the tokens of each expert, the most wanted first, each in [0, T); int64, distinct within a row.
        scores_EC: what the expert's output counts for that token; floating point.
        num_tokens: T.
    """

    token_ids_EC: Tensor
    scores_EC: Tensor
    num_tokens: int

    @property
    def chosen_TE(self) -> Tensor:
        """True where an expert took a token; [T, E], bool. Each column has C of them."""
        E = self.token_ids_EC.shape[0]
        chosen_TE = torch.zeros(self.num_tokens, E, dtype=torch.bool, device=self.token_ids_EC.device)
        return chosen_TE.scatter_(0, self.token_ids_EC.T, True)

    @property
    def experts_per_token_T(self) -> Tensor:
        """How many experts took each token; [T], int64. Zero: nobody wanted it."""
        return self.chosen_TE.sum(1)

    def apply(self, x_TD: Tensor, experts: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]) -> Tensor:
        """Compute the chosen (expert, token) pairs and add them up for each token; [T, D].

        Args:
            x_TD: [T, D].
            experts: from rows [E·C, D] and their `(ids [E·C, 1], scores [E·C, 1])` to the weighted outputs [E·C, D],
                such as `lambda x, chosen: dispatch.experts(x, chosen, gate_up_E2FD, down_EDF)`.

        Raises ValueError for another number of tokens.
        """
        if x_TD.ndim != 2 or x_TD.shape[0] != self.num_tokens:
            raise ValueError(f"x_TD has shape {tuple(x_TD.shape)}; expected ({self.num_tokens}, D)")
        E, C = self.token_ids_EC.shape
        token_N = self.token_ids_EC.reshape(-1)
        expert_N1 = torch.arange(E, device=token_N.device).repeat_interleave(C)[:, None]
        y_ND = experts(x_TD[token_N], (expert_N1, self.scores_EC.reshape(-1, 1)))
        return torch.zeros_like(x_TD, dtype=y_ND.dtype).index_add(0, token_N, y_ND)


def expert_choice(scores_TE: Tensor, capacity: int, mask_T: Tensor | None = None) -> ExpertChoice:
    """Each expert takes the `capacity` tokens with its highest scores; equal scores go to the earlier token.

    Expert choice routing (Zhou et al. 2022, arXiv 2202.09368, section 3.2). There the scores are a softmax over the
    experts, and the capacity is T · c / E for c experts per token on average: `core.capacity.expert_capacity(T, E, c)`.

    Args:
        scores_TE: [T, E], floating point, such as `logits_TE.softmax(-1)`.
        capacity: C, from 0 to the number of real tokens.
        mask_T: [T] or any shape of T elements, true or 1 where a token is real. Padding is never taken.

    The scores of the result are differentiable in `scores_TE`. Raises ValueError for what does not fit.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> expert_choice(scores, 2).token_ids_EC.tolist()
    [[0, 1], [2, 1]]
    """
    if scores_TE.ndim != 2 or not scores_TE.is_floating_point():
        raise ValueError(
            f"scores_TE has shape {tuple(scores_TE.shape)} and dtype {scores_TE.dtype}; give floating point [T, E]"
        )
    T = scores_TE.shape[0]
    real_T = real_tokens(mask_T, T, scores_TE.device)
    real = T if mask_T is None else int(real_T.sum())
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 0 <= capacity <= real:
        raise ValueError(f"capacity is {capacity!r}; an expert can take 0 to {real} of {real} real tokens")
    wanted_TE = scores_TE.detach().masked_fill(~real_T[:, None], float("-inf"))
    ids_EC = wanted_TE.argsort(dim=0, descending=True, stable=True)[:capacity].T.contiguous()
    return ExpertChoice(ids_EC, scores_TE.T.gather(1, ids_EC), T)
