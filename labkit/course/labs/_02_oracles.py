"""What lab 02's exercises are compared with: transformers' eager experts and torch's FLOP counter."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.config import MoEConfig


def one_expert(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One expert of transformers' Mixtral, given all tokens with weight 1."""
    from labkit.nn.oracle import hf_experts

    F, D = gate.shape
    flat = x.reshape(-1, D)
    ids = torch.zeros(len(flat), 1, dtype=torch.int64)
    config = MoEConfig(d_model=D, d_expert=F, num_experts=1, top_k=1)
    ones = torch.ones_like(ids, dtype=x.dtype)
    out = hf_experts("mixtral", config, flat, ids, ones, torch.cat([gate, up])[None], down[None])
    return out.reshape(x.shape).detach()


def counted_flops(T: int, D: int, F: int, E: int, K: int) -> int:
    """What torch's FLOP counter sees while transformers' OLMoE layer runs forward on T tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    from labkit.nn.oracle import hf_block

    block = hf_block("olmoe", MoEConfig(d_model=D, d_expert=F, num_experts=E, top_k=K, norm_topk=False))
    x = torch.randn(1, T, D, generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x)
    return counter.get_total_flops()
