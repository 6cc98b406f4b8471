"""Lab 08's oracles: torch's own sums, softmax and sorting, its FLOP counter, and transformers' routers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from labkit.core.config import MoEConfig
from labkit.course.attempt import Case
from labkit.kernels.guard import Instead, Out
from labkit.nn.oracle import hf_route

TYPES = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32}


def matmul_bound(
    M: int, K: int, N: int, itemsize: int, peak_flops: float, bandwidth: float
) -> tuple[float, float, str]:
    """What torch's FLOP counter and the tensors themselves say of a product; nothing is computed."""
    with torch.device("meta"):
        x, w = (torch.empty(shape, dtype=TYPES[itemsize]) for shape in ((M, K), (K, N)))
    with FlopCounterMode(display=False) as counter:
        y = x @ w
    flops, moved = counter.get_total_flops(), sum(t.numel() * t.element_size() for t in (x, w, y))
    seconds = {"memory": moved / bandwidth, "compute": flops / peak_flops}
    slowest = max(seconds, key=lambda what: (seconds[what], what == "compute"))
    return seconds[slowest], flops / moved, slowest


def _add(x: Tensor, y: Tensor, out: Out, n: int, BLOCK: int) -> Tensor:
    return torch.add(x, y)


def _softmax(x: Tensor, out: Out, x_stride: int, out_stride: int, width: int, BLOCK: int) -> Tensor:
    return torch.softmax(x, dim=-1, dtype=torch.float32)


def _top_k(x: Tensor, ids: Out, values: Out, stride: int, width: int, K: int, BLOCK: int) -> tuple[Tensor, Tensor]:
    found = torch.sort(x, dim=-1, descending=True, stable=True)
    return found.indices[:, :K], found.values[:, :K]


def _router(
    logits: Tensor, ids: Out, weights: Out, stride: int, E: int, K: int, NORM: bool, BLOCK: int
) -> tuple[Tensor, Tensor]:
    """OLMoE's router, or Qwen3-MoE's where weights are renormalised: the logits come through an identity matrix."""
    config = MoEConfig(d_model=E, d_expert=2, num_experts=E, top_k=K, norm_topk=NORM)
    topk_ids, topk_weights, _ = hf_route("qwen3_moe" if NORM else "olmoe", config, logits.float(), torch.eye(E))
    return topk_ids, topk_weights


add, softmax, top_k, router = (Instead(call) for call in (_add, _softmax, _top_k, _router))


def no_ties(case: Case) -> bool:
    """Whether no two logits of a token are equal: torch's topk, which these routers call, breaks ties as it likes."""
    return all(len(set(row)) == len(row) for row in case.args[0].tolist())
