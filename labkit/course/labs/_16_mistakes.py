"""Lab 16: mistakes in tensors. Each class is its exercise's answer with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.course.labs import _16_answers as right


class Splits:
    """`splits` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, ids_RTK: Sequence[Tensor], owner_E: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
        wrong, E = self.wrong, len(owner_E)
        if wrong == "even_blocks":
            owner_E = torch.arange(E) // max(E // num_ranks, 1) % num_ranks
        if wrong == "in_turn":
            owner_E = torch.arange(E) % num_ranks
        if wrong == "first_choice":
            ids_RTK = [ids_TK[:, :1] for ids_TK in ids_RTK]
        send_RR, receive_RR, visits_RR = right.splits(ids_RTK, owner_E, num_ranks)
        if wrong == "transposed":
            send_RR, receive_RR = receive_RR, send_RR
        if wrong == "receives_what_it_sends":
            receive_RR = send_RR
        if wrong == "own_left_out":
            send_RR, receive_RR, visits_RR = (
                rows.clone().fill_diagonal_(0) for rows in (send_RR, receive_RR, visits_RR)
            )
        if wrong == "visits_by_choice":
            visits_RR = send_RR
        if wrong == "each_token_once":
            send_RR, receive_RR = visits_RR, visits_RR.T.contiguous()
        if wrong == "visits_transposed":
            visits_RR = visits_RR.T.contiguous()
        if wrong == "experts_visited":
            visits_RR = torch.stack([owner_E[ids.unique()].bincount(minlength=num_ranks) for ids in ids_RTK])
        if wrong == "ranks_with_experts":
            ranks = int(owner_E.max()) + 1
            return send_RR[:, :ranks], receive_RR[:ranks], visits_RR[:, :ranks]
        return send_RR, receive_RR, visits_RR


class Dispatch:
    """`dispatch` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor, owner_E: Tensor, num_ranks: int,
        exchange: Callable[..., Tensor], experts: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        wrong, (T, K), ones = self.wrong, ids_TK.shape, [1] * num_ranks
        if wrong == "leaves_with_nothing" and T == 0:
            return torch.zeros_like(x_TD)
        if wrong == "stayed_home":
            y_NKD = experts(x_TD.repeat_interleave(K, dim=0), ids_TK.flatten()).view(T, K, x_TD.shape[1])
            return (y_NKD * scores_TK[..., None]).sum(dim=1)
        flat_N, token_N = ids_TK.flatten(), torch.arange(T * K) // K
        order_N = (flat_N if wrong == "by_expert" else owner_E[flat_N]).argsort(stable=True)
        if wrong == "not_sorted":
            order_N = torch.arange(T * K)
        send_R = owner_E[flat_N].bincount(minlength=num_ranks)
        receive_R = send_R if wrong == "counts_not_exchanged" else exchange(send_R, ones, ones)
        taken_N = order_N % max(T, 1) if wrong == "wrong_token" else token_N[order_N]
        early_N1 = scores_TK.reshape(-1, 1)[order_N] if wrong == "weighted_inputs" else 1.0
        rows_MD = exchange(x_TD[taken_N] * early_N1, send_R, receive_R)
        if wrong == "detached":
            rows_MD = rows_MD.detach()
        ids_M = flat_N[order_N]
        if wrong != "own_ids":
            ids_M = exchange(flat_N if wrong == "ids_unsorted" else ids_M, send_R, receive_R)
        there_R, here_R = (send_R, receive_R) if wrong == "same_way_back" else (receive_R, send_R)
        back_ND = exchange(experts(rows_MD, ids_M), there_R, here_R)
        if wrong == "scores_too_early":
            back_ND = back_ND * scores_TK.reshape(-1, 1)
        y_NKD = self._restored(back_ND, order_N).view(T, K, x_TD.shape[1])
        if wrong == "first_only":
            return y_NKD[:, 0] * scores_TK[:, :1]
        if wrong in ("unweighted", "scores_too_early", "weighted_inputs"):
            return y_NKD.sum(dim=1)
        y_NKD = y_NKD * scores_TK[..., None]
        if wrong == "renormalised":
            y_NKD = y_NKD / scores_TK.sum(dim=1)[:, None, None]
        return y_NKD.mean(dim=1) if wrong == "mean" else y_NKD.sum(dim=1)

    def _restored(self, back_ND: Tensor, order_N: Tensor) -> Tensor:
        if self.wrong == "not_restored":
            return back_ND
        return back_ND[order_N] if self.wrong == "wrong_inverse" else back_ND[order_N.argsort()]


class NodeLimited:
    """`node_limited` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, scores_TE: Tensor, num_nodes: int, max_nodes: int, top_k: int) -> Tensor:
        wrong, E = self.wrong, scores_TE.shape[1]
        if wrong == "no_limit":
            return scores_TE.topk(top_k).indices
        each = E // num_nodes
        node_E = torch.arange(E) // each
        if wrong == "nodes_in_turn":
            node_E = torch.arange(E) % num_nodes
        members_Ne = torch.stack([(node_E == node).nonzero().flatten() for node in range(num_nodes)])
        best = {"best_expert": 1, "whole_node": each, "best_k": min(top_k, each), "best_m": min(max_nodes, each)}
        take = 2 if wrong == "always_two" else best.get(wrong, top_k // max_nodes)
        worth_TN = scores_TE[:, members_Ne].topk(min(take, each), dim=2).values.sum(dim=2)
        chosen_TM = worth_TN.topk(max_nodes).indices
        if wrong == "equal_shares":
            per_TMk = (
                scores_TE[:, members_Ne]
                .gather(1, chosen_TM[..., None].expand(-1, -1, each))
                .topk(top_k // max_nodes, dim=2)
            )
            ids_TK = members_Ne[chosen_TM].gather(2, per_TMk.indices).flatten(1)
            return ids_TK.gather(1, scores_TE.gather(1, ids_TK).argsort(dim=1, descending=True))
        if wrong == "mask_in_turn":
            node_E = torch.arange(E) % num_nodes
        open_TE = (chosen_TM[..., None] == node_E).any(dim=1)
        masked_TE = scores_TE.masked_fill(~open_TE, 0.0 if wrong == "zero_mask" else -torch.inf)
        if wrong == "closed_instead":
            masked_TE = scores_TE.masked_fill(open_TE & (~open_TE).any(), -torch.inf)
        ids_TK = masked_TE.topk(top_k).indices
        if wrong == "within_nodes":
            return ids_TK % each
        return ids_TK.sort(dim=1).values if wrong == "in_order_of_ids" else ids_TK
