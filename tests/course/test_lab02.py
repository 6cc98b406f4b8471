"""Lab 02's references, put together, are a sparse layer: equal to transformers' experts and to the specification."""

from __future__ import annotations

import pytest
import torch

from labkit.core import cost, presets
from labkit.core.config import MoEConfig
from labkit.course import labs
from labkit.kernels import reference
from labkit.nn.oracle import hf_experts

EXERCISES = {exercise.name: exercise.reference for exercise in labs.lab("02").exercises}
CONFIG = MoEConfig(d_model=6, d_expert=10, num_experts=5, top_k=2)


def layer(T: int, experts_in_use: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(T)
    E, D, F = CONFIG.num_experts, CONFIG.d_model, CONFIG.d_expert
    ids = torch.rand(T, experts_in_use, generator=generator).argsort(dim=1)[:, : CONFIG.top_k]
    scores = torch.rand(T, CONFIG.top_k, generator=generator)
    x = torch.randn(T, D, generator=generator, dtype=dtype)
    gate_up = torch.randn(E, 2 * F, D, generator=generator, dtype=dtype)
    return x, ids, scores, gate_up, torch.randn(E, D, F, generator=generator, dtype=dtype)


def assembled(x, ids, scores, gate_up, down):
    """The learner's layer: dispatch, each slice through its expert, combine."""
    E, F = down.shape[0], down.shape[2]
    x_ND, order, offsets = EXERCISES["dispatch_by_sort"](x, ids, E)
    sizes = EXERCISES["tokens_per_expert"](ids, E).tolist()
    assert offsets.tolist() == [sum(sizes[: e + 1]) for e in range(E)]
    slices = [
        EXERCISES["swiglu_expert"](rows, gate_up[e, :F], gate_up[e, F:], down[e])
        for e, rows in enumerate(x_ND.split(sizes))
    ]
    return EXERCISES["combine"](torch.cat(slices), order, scores)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
@pytest.mark.parametrize(("T", "experts_in_use"), [(1, 5), (7, 5), (33, 5), (9, 2)])
def test_the_four_steps_equal_transformers_experts(family, T, experts_in_use):
    inputs = layer(T, experts_in_use)
    torch.testing.assert_close(assembled(*inputs), hf_experts(family, CONFIG, *inputs), rtol=1e-4, atol=1e-4)


def test_gradients_equal_the_specification():
    tensors = [t.requires_grad_(t.is_floating_point()) for t in layer(11, 3)]
    wanted = [t for t in tensors if t.requires_grad]
    ours = torch.autograd.grad(assembled(*tensors).square().sum(), wanted)
    theirs = torch.autograd.grad(reference.experts_loop(*tensors).square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_dispatch_sorts_as_the_specification_does():
    x, ids, *_ = layer(33, 4)
    rows, order, offsets = EXERCISES["dispatch_by_sort"](x, ids, 5)
    want_order, want_token, want_offsets = reference.sort_by_expert(ids, 5)
    assert order.tolist() == want_order.tolist()
    assert offsets.tolist() == want_offsets.tolist()
    assert torch.equal(rows, reference.permute(x, want_token))


@pytest.mark.parametrize("name", ["mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b"])
def test_flops_equal_the_accounts_of_the_course(name):
    c = presets.preset(name).moe
    assert EXERCISES["moe_flops"](4096, c.d_model, c.d_expert, c.num_experts, c.top_k) == cost.moe_flops(c, 4096).total
