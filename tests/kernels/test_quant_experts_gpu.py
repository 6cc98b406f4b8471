"""Quantised experts on a GPU: equal to the formats' references, the same bits twice, in graphs, no waits."""

import pytest
import torch
from torch.nn.functional import silu

from labkit.kernels import early, fp8, nf4, quant, quant_experts, quant_rows
from labkit.kernels.quant_experts import experts

pytestmark = pytest.mark.gpu
CASES = [("int8", False), ("fp8", False), ("nf4", False), ("int8", True), ("fp8", True)]
SIZES = [  # T, D, F, E, K
    (1, 2048, 768, 16, 8),
    (2, 512, 1408, 8, 6),
    (4, 2048, 768, 32, 8),
    (3, 512, 4224, 8, 2),
    (16, 1024, 384, 64, 8),
    (300, 256, 128, 8, 2),
    (1000, 160, 256, 60, 6),
    (3000, 512, 896, 16, 3),
]
LIMIT = {torch.float32: 5e-4, torch.bfloat16: 8e-3}


def draw(T, D, F, E, K, form, dtype=torch.float32, skewed=False):
    g = torch.Generator("cuda").manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=g, device="cuda")  # noqa: E731
    scores, ids = (r(T, E) + (4 * r(E) if skewed else 0)).softmax(-1).topk(K)
    make = {"int8": quant.int8, "fp8": fp8.fp8, "nf4": nf4.nf4}[form]
    packed = make(r(E, 2 * F, D) * D**-0.5), make(r(E, D, F) * F**-0.5)
    scale = {"int8": lambda p: p.scale[..., 0].contiguous(), "fp8": lambda p: p.scale, "nf4": lambda p: p.absmax}[form]
    return (r(T, D).to(dtype), ids, scores), packed, [t for p in packed for t in (p.codes, scale(p))]


def want(routed, packed, form, activations):
    """In float32, expert by expert, from the values that the codes stand for."""
    x, ids, scores = routed

    def rounded(x):
        if not activations:
            return x
        if form == "fp8":
            codes, scale = fp8.fp8_rows(x)
            return codes.float() * scale.repeat_interleave(128, 1)[:, : x.shape[1]]
        rows = quant.int8_rows(x)
        return rows.codes.float() * rows.absmax / 127

    out = torch.zeros(x.shape, device="cuda")
    for e in range(len(packed[1])):
        t, k = torch.where(ids == e)
        if len(t):
            gate, up = (rounded(x[t].float()) @ packed[0][e].dequantize().mT).chunk(2, -1)
            hidden = silu(gate) * up
            if form == "int8":  # written in the tokens' dtype before it is rounded again
                hidden = hidden.to(x.dtype).float()
            y = rounded(hidden) @ packed[1][e].dequantize().mT
            out.index_add_(0, t, y * scores[t, k, None])
    return out


def error(ours, wanted):
    return ((ours.float() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("form", "activations"), CASES)
@pytest.mark.parametrize("sizes", SIZES)
def test_close_to_the_reference_and_the_same_twice(sizes, form, activations, skewed, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    routed, packed, raw = draw(*sizes, form, dtype, skewed)
    ours, again = (experts(*routed, *raw, form=form, activations=activations) for _ in range(2))
    assert torch.equal(ours, again)
    # A value right between two codes may fall on the other side, as the kernels' divisions are not exact, and bfloat16
    # has many such values. The formats' own errors are 3e-2 (INT8) and 6e-2 (FP8).
    limit = max(LIMIT[dtype], 1.5e-2 if activations else 0)
    assert error(ours, want(routed, packed, form, activations)) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_equal_the_reference(dtype):
    x = torch.randn(1001, 1000, device="cuda").to(dtype)
    x[3], x[4, 2] = 0, 6e4
    codes, scale = quant_rows.fp8_rows(x)
    wanted, wanted_scale = fp8.fp8_rows(x)
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-6, atol=0)
    assert (codes.float() != wanted.float()).float().mean() < 3e-3  # bfloat16 has many values right between two codes
    codes, scale = quant_rows.int8_rows(x)
    rows = quant.int8_rows(x)
    assert (codes.int() - rows.codes.int()).abs().max() <= 1
    assert (codes != rows.codes).float().mean() < 1e-3


@pytest.mark.parametrize(("form", "activations"), CASES)
@pytest.mark.parametrize("T", [1, 64])
def test_in_a_cuda_graph_and_compiled(form, activations, T):
    (x, ids, scores), _, raw = draw(T, 512, 256, 16, 2, form, torch.bfloat16)
    call = lambda x: experts(x, ids, scores, *raw, form=form, activations=activations)  # noqa: E731
    wanted = call(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(x)
    graph.replay()
    assert torch.equal(y, wanted)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, call(x))
    torch._dynamo.reset()  # each case is the same code to it
    assert torch.equal(torch.compile(call, fullgraph=True)(x), y)


@pytest.mark.skipif(not early.can(torch.device("cuda")), reason="this GPU starts no kernel early")
@pytest.mark.parametrize("form", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("T", [1, 4, 16])
def test_a_kernel_that_starts_early_still_waits(form, T, monkeypatch):
    """Calls behind each other, each with tokens of its own: hidden rows of the one before would show."""
    (x, ids, scores), _, raw = draw(T, 2048, 1408, 64, 8, form, torch.bfloat16)
    tokens = [x * (i + 1) for i in range(50)]
    call = lambda x: experts(x, ids, scores, *raw, form=form)  # noqa: E731
    ours = [call(each) for each in tokens]
    monkeypatch.setattr(early, "can", lambda _: False)
    assert all(torch.equal(mine, call(each)) for mine, each in zip(ours, tokens, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(("form", "activations"), CASES)
def test_nothing_waits_for_the_device(form, activations):
    routed, _, raw = draw(64, 512, 256, 16, 2, form, torch.bfloat16)
    experts(*routed, *raw, form=form, activations=activations)
    torch.cuda.set_sync_debug_mode("error")
    try:
        experts(*routed, *raw, form=form, activations=activations)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_beyond_two_to_the_31_weights():
    (x, ids, scores), _, _ = draw(64, 4096, 128, 2, 1, "int8", torch.bfloat16)
    E, F = 160, 2048
    codes = torch.randint(-127, 128, (E, 2 * F, 4096), device="cuda", dtype=torch.int8)
    down = torch.randint(-127, 128, (E, 4096, F), device="cuda", dtype=torch.int8)
    assert codes[:-16].numel() > 2**31
    raw = codes, torch.full((E, 2 * F), 1e-4, device="cuda"), down, torch.full((E, 4096), 1e-4, device="cuda")
    one = [t[-1:].contiguous() for t in raw]
    for T in (1, 64):
        for activations in (False, True):
            how = {"form": "int8", "activations": activations}
            last = torch.full_like(ids[:T], E - 1)
            far, near = experts(x[:T], last, scores[:T], *raw, **how), experts(x[:T], last * 0, scores[:T], *one, **how)
            assert error(far, near.float()) < 5e-3  # tiles differ with the rows an expert


hopper = pytest.mark.skipif(bool(quant_experts.why_plain()), reason=quant_experts.why_plain())


@hopper
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(
    "sizes", [*SIZES, (129, 144, 128, 3, 2), (5000, 2048, 1408, 60, 6), (4096, 4096, 14336, 8, 2), (64, 384, 128, 1, 1)]
)
def test_warps_with_jobs_agree_with_plain_triton(sizes, skewed, monkeypatch):
    """The same codes and scales up to the last bit of float32, whatever the order of sums; no race shows in 20 runs."""
    (x, ids, scores), _, raw = draw(*sizes, "fp8", torch.bfloat16, skewed)
    ids[0, -1], ids[-1, 0] = -1, sizes[3]  # dropped
    call = lambda: experts(x, ids, scores, *raw, form="fp8", activations=True)  # noqa: E731
    ours = call()
    assert all(torch.equal(call(), ours) for _ in range(20))
    monkeypatch.setattr(quant_experts, "why_plain", lambda *_: "a test")
    plain = call()
    assert error(ours, plain.float()) < 5e-3
    assert ((ours - plain).float().abs().amax(1) <= 0.05 * plain.float().abs().amax(1) + 1e-6).all()


@hopper
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_token(bad):
    (x, ids, scores), _, raw = draw(300, 512, 256, 8, 2, "fp8", torch.bfloat16)
    x[7, 3] = bad
    y = experts(x, ids, scores, *raw, form="fp8", activations=True)
    assert (~y.isfinite().all(1)).nonzero().flatten().tolist() == [7]


@hopper
def test_between_other_kernels_and_streams():
    """Barriers are made anew in every launch: two streams at once, and a graph, give the bits that one call gives."""
    routed, _, raw = draw(700, 1024, 384, 16, 4, "fp8", torch.bfloat16)
    call = lambda: experts(*routed, *raw, form="fp8", activations=True)  # noqa: E731
    wanted, streams, found = call(), [torch.cuda.Stream() for _ in range(2)], []
    torch.cuda.synchronize()
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(call())
    torch.cuda.synchronize()
    assert all(torch.equal(each, wanted) for each in found)
