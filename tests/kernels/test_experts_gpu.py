"""The experts' kernels on a GPU: close to float64 in every dtype, the same bits twice, in graphs, past 2³¹ elements."""

import pytest
import torch

from labkit.kernels import reference
from labkit.kernels.experts import experts

pytestmark = pytest.mark.gpu
LIMIT = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
SIZES = [  # T, D, F, E, K
    (300, 256, 128, 8, 2),
    (1000, 200, 104, 60, 6),
    (1, 512, 256, 4, 2),
    (5000, 512, 256, 16, 3),
    (130, 136, 72, 3, 3),
    (64, 1024, 512, 128, 8),
]


def draw(T, D, F, E, K, dtype, skewed=False):
    g = torch.Generator("cuda").manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=g, device="cuda")  # noqa: E731
    logits = r(T, E) + (4 * r(E) if skewed else 0)
    scores, ids = logits.softmax(-1).topk(K)
    x, up, down = (t.to(dtype).requires_grad_() for t in (r(T, D), r(E, 2 * F, D) * D**-0.5, r(E, D, F) * F**-0.5))
    return x, ids, scores.requires_grad_(), up, down


def run(fn, x, ids, scores, up, down):
    y = fn(x, ids, scores, up, down)
    grad = torch.cos(torch.arange(y.numel(), device="cuda", dtype=torch.float32)).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, scores, up, down), grad)]


def error(ours, want):
    return ((ours.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_close_to_float64_and_the_same_twice(sizes, skewed, dtype):
    x, ids, scores, up, down = draw(*sizes, dtype, skewed)
    ours, again = (run(experts, x, ids, scores, up, down) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    wide = [t.detach().double().requires_grad_() for t in (x, scores, up, down)]
    want = run(reference.experts_loop, wide[0], ids, *wide[1:])
    names = ("output", "x", "scores", "gate_up", "down")
    errors = {name: error(a, b) for name, a, b in zip(names, ours, want, strict=True)}
    if sizes[0] == 1:  # the gradient of two scores: two sums whose terms nearly cancel, in any implementation
        torchs = run(reference.experts_loop, x, ids, scores, up, down)
        assert errors.pop("scores") < max(LIMIT[dtype], 2 * error(torchs[2], want[2]))
    assert max(errors.values()) < LIMIT[dtype], errors


def test_in_a_cuda_graph_and_compiled():
    x, ids, scores, up, down = (t.detach() for t in draw(64, 512, 256, 16, 2, torch.bfloat16))
    want = experts(x, ids, scores, up, down)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = experts(x, ids, scores, up, down)
    new = torch.randint(0, 16, ids.shape, device="cuda")
    for routing in (ids, new):
        ids.copy_(routing)
        graph.replay()
        assert torch.equal(y, experts(x, ids, scores, up, down))
    ids.copy_(new)
    assert not torch.equal(y, want)
    compiled = torch.compile(experts, fullgraph=True)
    assert torch.equal(compiled(x, ids, scores, up, down), y)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    x, ids, scores, up, down = draw(500, 256, 128, 8, 2, torch.bfloat16)
    run(experts, x, ids, scores, up, down)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(experts, x, ids, scores, up, down)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_beyond_two_to_the_31_elements():
    """N·2F and E·2F·D both pass 2³¹: offsets in 32 bits would wrap."""
    T, D, F, E, K = 140_000, 64, 1024, 8, 8
    x, ids, scores, up, down = draw(T, D, F, E, K, torch.bfloat16)
    assert T * K * 2 * F > 2**31
    y, grad_x, *_ = run(experts, x, ids, scores, up, down)
    some = torch.arange(T - 64, T, device="cuda")
    part = [t.detach()[some].double() if t.shape[0] == T else t.detach().double() for t in (x, scores, up, down)]
    want = reference.experts_loop(part[0], ids[some], *part[1:])
    assert error(y[some], want) < 5e-3
    assert grad_x.isfinite().all()
    del x, ids, scores, up, down, y, grad_x
    torch.cuda.empty_cache()
    x, ids, scores, up, down = (t.detach() for t in draw(64, 4096, 4608, 64, 2, torch.bfloat16))
    assert up.numel() > 2**31
    y = experts(x, ids, scores, up, down)
    want = torch.zeros(64, 4096, dtype=torch.float32, device="cuda")
    for t in range(64):
        for k in range(2):
            e = int(ids[t, k])
            one = reference.swiglu(x[t : t + 1].float(), up[e].float(), down[e].float())
            want[t] += scores[t, k] * one[0]
    assert error(y, want.double()) < 5e-3
