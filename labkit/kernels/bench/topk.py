"""The router's decision: softmax, the K largest, weights that sum to one. Ours counts each expert's tokens as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from labkit.kernels import reference, routes
from labkit.kernels.bench.calls import compile_on_gpu
from labkit.kernels.bench.error import relative, wide
from labkit.kernels.bench.moe import busiest, skewed_logits
from labkit.kernels.bench.peers import OURS, Call, Make
from labkit.kernels.bench.shapes import RouterShape


@dataclass(frozen=True, eq=False)
class RouterCase:
    """Logits of one shape, a leaf that requires gradients; `grad_TK` is the gradient of the weights."""

    shape: RouterShape
    dtype: torch.dtype
    device: torch.device
    logits_TE: Tensor
    grad_TK: Tensor
    load: float

    visited = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken of."""
        return {"logits": self.logits_TE}

    @property
    def grad(self) -> Tensor:
        """The gradient of the weights."""
        return self.grad_TK

    @staticmethod
    def value(output: Any) -> Tensor:
        """Of what a contestant gives, the part that gradients come from."""
        return output[1]

    def wanted(self, backward: bool) -> Tensor:
        """The K largest weights of each token, the largest first."""
        return reference.route(self._logits().detach(), top_k=self.shape.K)[1]

    def errors(self, wanted: Tensor, output: Any, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """How far the weights are from the best there are, and from what the chosen ids are worth; and the gradient.

        Experts of equal score may be chosen either way and stand in any order, so everything but the first error is
        asked at the contestant's own ids. Counts, if it gives any, are compared with its ids too.
        """
        ids_TK, weights_TK, *counts = output
        if ids_TK.shape != wanted.shape:
            raise ValueError(f"it gave ids of shape {tuple(ids_TK.shape)}; expected {tuple(wanted.shape)}")
        ids_TK = ids_TK.long()
        logits = self._logits().detach().requires_grad_()
        worth_TK = reference.weigh(reference.scores(logits), ids_TK)
        found = {
            "weights": relative(weights_TK.sort(-1, descending=True).values, wanted),
            "ids": relative(weights_TK, worth_TK),
        }
        if counts:
            right_E = torch.bincount(ids_TK.flatten(), minlength=self.shape.E)
            found["counts"] = relative(counts[0].long(), right_E)
        if gradients:
            (gradient,) = torch.autograd.grad(worth_TK, logits, self.grad_TK.to(worth_TK.dtype))
            found["logits"] = relative(gradients["logits"], gradient)
        return found

    def _logits(self) -> Tensor:
        return self.logits_TE.to(wide(self.dtype))


def draw(shape: RouterShape, dtype: torch.dtype, device: torch.device, seed: int) -> RouterCase:
    """Skewed logits, as for the experts."""
    T, E, K = shape.T, shape.E, shape.K
    routing = torch.Generator().manual_seed(seed)
    logits_TE = skewed_logits(T, E, routing).to(dtype)
    counts = torch.bincount(logits_TE.float().topk(K).indices.flatten(), minlength=E)
    grad_TK = torch.randn(T, K, generator=routing)
    leaf_TE = logits_TE.to(device).requires_grad_()
    return RouterCase(shape, dtype, device, leaf_TE, grad_TK.to(device), busiest(counts))


def plain(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax, top-k and renormalisation in torch: ids and weights, no counts.

    >>> plain(torch.tensor([[1.0, 1.0, -9.0]]), 2)[1].tolist()
    [[0.5, 0.5]]
    """
    scores_TK, ids_TK = logits_TE.softmax(-1, dtype=torch.float32).topk(top_k)
    return ids_TK, scores_TK / scores_TK.sum(-1, keepdim=True)


def _ours(case: RouterCase) -> Call:
    return Call(
        lambda: routes.route(case.logits_TE, top_k=case.shape.K, implementation="triton"), case.leaves,
        note="counts each expert's tokens too",
    )  # fmt: skip


def _torch(compiled: bool, case: RouterCase) -> Call:
    fn = compile_on_gpu(plain, case.device) if compiled else plain
    return Call(lambda: fn(case.logits_TE, case.shape.K), case.leaves, note="no counts")


CONTESTANTS: dict[str, Make] = {
    OURS: _ours,
    "torch": partial(_torch, False),
    "torch, compiled": partial(_torch, True),
}
"""Who is measured without being asked, ours first."""
