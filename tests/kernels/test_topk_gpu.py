"""The fused router on a GPU: as the reference in every dtype, the same bits twice, in graphs, past 2³¹ logits."""

import pytest
import torch

from labkit.core.config import SCORE_FNS
from labkit.kernels import reference, topk

pytestmark = pytest.mark.gpu
SIZES = [(8, 2), (60, 4), (64, 8), (128, 8), (160, 6), (256, 8), (384, 8), (5, 5), (1, 1), (1000, 8)]  # E, K
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
V3 = {"score_fn": "sigmoid", "num_groups": 8, "top_groups": 4, "group_score": "top2_sum", "route_scale": 2.5}


def normal(T, E, dtype=torch.float32, seed=0):
    return torch.randn(T, E, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").to(dtype)


def agree(logits, **options):
    """Rank by rank our experts have the reference's choice scores, so ids differ only where rounding decides."""
    leaf = logits.detach().requires_grad_()
    ids, weights, counts = topk.route(leaf, **options)
    want_ids, want = reference.route(leaf, **options)
    choice = reference.scores(leaf.detach(), options.get("score_fn", "softmax"))
    if options.get("bias_E") is not None:
        choice = choice + options["bias_E"]
    same = (ids == want_ids).all(dim=1)
    if options.get("num_groups", 1) == 1:  # a tie between groups may exchange all of a token's experts
        torch.testing.assert_close(choice.gather(1, ids), choice.gather(1, want_ids), rtol=2e-6, atol=1e-7)
    assert same.float().mean() > 0.999
    torch.testing.assert_close(weights[same], want[same], rtol=1e-5, atol=1e-6)
    assert (ids.sort().values.diff() > 0).all()
    assert torch.equal(counts, torch.bincount(ids.reshape(-1), minlength=logits.shape[1]))
    pull = torch.cos(torch.arange(want.numel(), device="cuda", dtype=torch.float32)).view(want.shape)
    ours, theirs = (torch.autograd.grad(w, leaf, pull)[0][same].double() for w in (weights, want))
    assert ours.dtype == theirs.dtype
    limit = 1e-5 if logits.dtype == torch.float32 else 5e-3
    assert (ours - theirs).norm() <= limit * theirs.norm() + 1e-6 * theirs.numel() ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score_fn", SCORE_FNS)
@pytest.mark.parametrize(("E", "K"), SIZES)
def test_it_decides_as_the_reference(E, K, score_fn, dtype):
    logits = normal(1003, E, dtype)
    agree(logits, top_k=K, score_fn=score_fn)
    agree(logits, top_k=K, score_fn=score_fn, norm_topk=False, route_scale=2.5, bias_E=normal(1, E)[0] / 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("E", "G", "top"), [(256, 8, 4), (160, 8, 3), (72, 9, 5), (6, 3, 2), (990, 66, 9)])
def test_groups(E, G, top, dtype):
    bias = normal(1, E)[0] / 9
    agree(normal(1003, E, dtype), top_k=4, **V3 | {"num_groups": G, "top_groups": top}, bias_E=bias)
    agree(normal(1003, E, dtype), top_k=4, num_groups=G, top_groups=top)


@pytest.mark.parametrize("score_fn", SCORE_FNS)
def test_ties_are_the_references_to_the_last_one(score_fn):
    """Logits from a grid: equal ones have equal scores, unequal ones scores that no rounding can exchange."""
    logits = (normal(5000, 64) * 4).round() / 4
    assert torch.equal(
        topk.route(logits, top_k=8, score_fn=score_fn)[0], reference.route(logits, top_k=8, score_fn=score_fn)[0]
    )


@pytest.mark.parametrize("centre", [-60.0, -18.0, -10.0, -3.0, 0.0, 15.0])
def test_softplus_keeps_its_digits(centre):
    """The GPU's logarithm is right to 2⁻²² in absolute terms only."""
    logits = (centre + normal(500, 64)).requires_grad_()
    ids, weights, _ = topk.route(logits, top_k=8, score_fn="sqrtsoftplus", norm_topk=False)
    wide = logits.detach().double().requires_grad_()
    want = reference.scores(wide, "sqrtsoftplus").gather(1, ids)
    torch.testing.assert_close(weights.double(), want, rtol=5e-6, atol=0)
    ours, theirs = (torch.autograd.grad(w.sum(), t)[0] for w, t in ((weights, logits), (want, wide)))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("T", [0, 1, 7])
def test_few_tokens(T):
    ids, weights, counts = topk.route(normal(T, 64), top_k=8)
    assert ids.shape == weights.shape == (T, 8)
    assert counts.sum() == 8 * T


def test_the_same_bits_twice():
    logits = normal(20_000, 64, torch.bfloat16).requires_grad_()
    runs = []
    for _ in range(2):
        ids, weights, counts = topk.route(logits, top_k=8)
        runs.append((ids, weights, counts, torch.autograd.grad(weights.square().sum(), logits)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_cuda_graph_counts_anew_at_every_replay():
    logits = normal(500, 64)
    topk.route(logits, top_k=8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = topk.route(logits, top_k=8)
    for seed in (0, 1, 1):
        logits.copy_(normal(500, 64, seed=seed))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, topk.route(logits, top_k=8), strict=True))


def test_compiled_without_a_graph_break():
    logits = normal(500, 64).requires_grad_()

    def loss(logits):
        ids, weights, counts = topk.route(logits * 2, top_k=8)
        return (weights * ids).sum() + counts.sum() * 0

    want = torch.autograd.grad(loss(logits), logits)[0]
    ours = torch.autograd.grad(torch.compile(loss, fullgraph=True)(logits), logits)[0]
    torch.testing.assert_close(ours, want)
    bias = torch.zeros(64, device="cuda")
    torch.library.opcheck(topk._forward, (logits, bias, 8, "sigmoid", True, 1.0, 8, 4, True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    logits = normal(500, 64).requires_grad_()
    topk.route(logits, top_k=8)[1].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        topk.route(logits, top_k=8)[1].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_beyond_two_to_the_31_logits():
    T, E = 2**25 + 5, 64
    logits = torch.empty(T, E, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    assert logits.numel() > 2**31
    ids, weights, counts = topk.route(logits, top_k=2)
    assert counts.sum() == 2 * T
    grad = torch.autograd.grad(weights, logits, torch.ones_like(weights) * torch.tensor([1.0, -1.0], device="cuda"))[0]
    for rows in (slice(0, 100), slice(T - 100, T)):
        part = logits.detach()[rows].clone().requires_grad_()
        want_ids, want = reference.route(part, top_k=2)
        assert torch.equal(ids[rows], want_ids)
        torch.testing.assert_close(weights[rows], want, rtol=1e-5, atol=1e-6)
        theirs = torch.autograd.grad(want, part, torch.tensor([[1.0, -1.0]], device="cuda").expand(100, 2))[0]
        torch.testing.assert_close(grad[rows], theirs, rtol=2e-2, atol=1e-4)
