"""Flash attention on a GPU: close to float64 in every dtype, the same bits twice, in graphs, past 2³¹ elements."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from labkit.kernels.attention import attention

pytestmark = pytest.mark.gpu
LIMIT = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
SIZES = [  # B, H, G, S, K, d
    (2, 4, 4, 512, 512, 64),
    (1, 8, 2, 1000, 1000, 128),
    (1, 4, 1, 300, 777, 96),
    (2, 2, 2, 777, 300, 80),
    (1, 2, 1, 400, 400, 256),
    (1, 2, 2, 129, 129, 192),
    (1, 6, 3, 1, 500, 128),
    (3, 2, 2, 65, 65, 20),
    (1, 1, 1, 1, 1, 16),
    (1, 16, 2, 2048, 2048, 128),
]


def draw(B, H, G, S, K, d, dtype):
    g = torch.Generator("cuda").manual_seed(0)
    shapes = (B, H, S, d), (B, G, K, d), (B, G, K, d)
    return [torch.randn(shape, generator=g, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def plain(q, k, v, *, causal):
    S, K = q.shape[2], k.shape[2]
    mask = torch.ones(S, K, dtype=torch.bool, device="cuda").tril(K - S if causal else K)
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def run(fn, tensors, **how):
    y = fn(*tensors, **how)
    grad = torch.cos(torch.arange(y.numel(), device="cuda", dtype=torch.float32)).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, grad)]


def error(ours, want):
    return ((ours.double() - want).norm() / want.norm().clamp_min(0.1)).item()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_close_to_float64_and_the_same_twice(sizes, causal, dtype):
    tensors = draw(*sizes, dtype)
    ours, again = (run(attention, tensors, causal=causal) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    wide = [t.detach().double().requires_grad_() for t in tensors]
    errors = {n: error(a, b) for n, a, b in zip("yqkv", ours, run(plain, wide, causal=causal), strict=True)}
    assert max(errors.values()) < LIMIT[dtype], errors


def test_in_a_cuda_graph_and_compiled():
    q, k, v = (t.detach() for t in draw(2, 8, 2, 500, 500, 64, torch.bfloat16))
    want = attention(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = attention(q, k, v)
    graph.replay()
    assert torch.equal(y, want)
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert torch.equal(y, attention(q, k, v))
    assert not torch.equal(y, want)
    leaves = draw(1, 4, 2, 300, 300, 64, torch.bfloat16)
    compiled = torch.compile(attention, fullgraph=True)
    for a, b in zip(run(compiled, leaves), run(attention, leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    tensors = draw(1, 4, 2, 300, 300, 64, torch.bfloat16)
    run(attention, tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(attention, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_grows_with_the_length_and_not_with_its_square():
    peaks = []
    for S in (4096, 8192):
        tensors = draw(1, 8, 8, S, S, 64, torch.bfloat16)
        run(attention, tensors)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(attention, tensors)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del tensors
    assert peaks[1] < 2.1 * peaks[0]


def test_beyond_two_to_the_31_elements():
    B, H, S, d = 9, 32, 65_536, 128
    q, k, v = (torch.randn(B, S, h, d, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for h in (H, 1, 1))
    assert q.numel() > 2**31
    q.requires_grad_()
    y = attention(q, k, v)
    some = slice(S - 64, S)
    want = plain(q[-1:, -2:, some].detach().float(), k[-1:].float(), v[-1:].float(), causal=True)
    assert error(y[-1:, -2:, some].detach(), want.double()) < 5e-3
    (grad,) = torch.autograd.grad(y, q, torch.ones_like(y))
    assert grad[-1, -1].isfinite().all()
