"""Every implementation on a CUDA device against the loop in float64 on the CPU, values and gradients."""

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.kernels import reference
from labkit.kernels.dispatch import experts, names
from labkit.nn import MoE

pytestmark = pytest.mark.gpu
SIZES = [(7, 8, 16, 5, 2), (1, 16, 24, 4, 4), (333, 64, 40, 8, 2), (64, 8, 8, 16, 1)]  # T, D, F, E, K
ROUNDING = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # float32 products may run in TF32


def error(ours, want):
    return ((ours.detach().cpu().double() - want).norm() / want.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("sizes", SIZES)
def test_implementation_on_cuda(name, dtype, sizes):
    T, D, F, E, K = sizes
    g = torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    ids, scores = reference.route(r(T, E), top_k=K)
    given = [t.to(dtype) for t in (r(T, D), r(E, 2 * F, D) * D**-0.5, r(E, D, F) * F**-0.5)]
    runs = []
    for device, wide, which in (("cuda", dtype, name), ("cpu", torch.float64, "loop")):
        x, up, down = (t.to(device, wide).requires_grad_() for t in given)
        s = scores.to(device, torch.float32 if device == "cuda" else wide).requires_grad_()
        y = experts(x, (ids.to(device), s), up, down, implementation=which)
        y.square().sum().backward()
        runs.append([y.detach(), *(t.grad for t in (x, s, up, down))])
    worst = max(error(ours, want) for ours, want in zip(*runs, strict=True))
    assert worst < ROUNDING[dtype], f"{name}: relative error {worst:.1e}"


@pytest.mark.parametrize("name", names())
def test_layer_on_cuda_under_autocast(name):
    layer = MoE(MoEConfig(d_model=64, d_expert=32, num_experts=8, top_k=2, num_shared_experts=1), name).cuda()
    x = torch.randn(4, 9, 64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y, routing = layer(x, return_routing=True)
        y.square().sum().backward()
    assert (y.dtype, routing.logits_TE.dtype) == (torch.float32, torch.float32)
    assert layer.experts.gate_up_E2FD.grad.isfinite().all()
