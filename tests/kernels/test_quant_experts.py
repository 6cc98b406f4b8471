"""Quantised experts on Triton kernels equal the torch reference of their format, in the interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

from labkit.kernels import fp8, nf4, quant, quant_experts, quant_pairs, quant_rows, reference
from labkit.kernels.permute import expert_map
from labkit.kernels.quant_experts import experts
from labkit.kernels.quant_wide import widen


def pack(w, form):
    """The reference's record, and the codes and scales that the kernels take."""
    if form == "int8":
        packed = quant.int8(w)
        return packed, packed.codes, packed.scale[..., 0].contiguous()
    if form == "fp8":
        packed = fp8.fp8(w)
        return packed, packed.codes, packed.scale
    packed = nf4.nf4(w)
    return packed, packed.codes, packed.absmax


def draw(T, D, F, E, K, form, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    gate_up, down = pack(r(E, 2 * F, D) * D**-0.5, form), pack(r(E, D, F) * F**-0.5, form)
    routed = r(T, D), r(T, E).topk(K).indices, torch.rand(T, K, generator=g)
    return routed, (gate_up[0], down[0]), (*gate_up[1:], *down[1:])


def want(routed, packed, form, activations):
    """Expert by expert, with the products that the format defines."""
    x, ids, scores = routed
    product = {"int8": quant.int8_product, "fp8": fp8.fp8_product}[form] if activations else quant.weight_only
    out = torch.zeros_like(x)
    for e in range(len(packed[1])):
        t, k = torch.where(ids == e)
        gate, up = product(x[t], packed[0][e]).chunk(2, -1)
        out.index_add_(0, t, product(silu(gate) * up, packed[1][e]) * scores[t, k, None])
    return out


def error(ours, wanted):
    return ((ours - wanted).norm() / wanted.norm().clamp_min(1e-9)).item()


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_weight_only_equals_the_reference(data):
    form = data.draw(st.sampled_from(["int8", "fp8", "nf4"]), "form")
    E = data.draw(st.integers(1, 4), "E")
    K = data.draw(st.integers(1, min(2, E)), "K")
    T = data.draw(st.sampled_from([1, 2, 4, 5, 40]), "T")
    D = 32 * data.draw(st.integers(1, 9), "D")
    F = 128 if form == "fp8" else 32 * data.draw(st.integers(1, 6), "F")
    routed, packed, raw = draw(T, D, F, E, K, form)
    assert error(experts(*routed, *raw, form=form), want(routed, packed, form, False)) < 1e-5


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_both_sides_quantised_equal_the_reference(data):
    form = data.draw(st.sampled_from(["int8", "fp8"]), "form")
    E = data.draw(st.integers(1, 4), "E")
    K = data.draw(st.integers(1, min(2, E)), "K")
    T = data.draw(st.sampled_from([1, 30, 70]), "T")
    D, F = 16 * data.draw(st.integers(1, 18), "D"), 128 * data.draw(st.integers(1, 2), "F")
    routed, packed, raw = draw(T, D, F, E, K, form)
    ours = experts(*routed, *raw, form=form, activations=True)
    # A hidden value that falls between two codes may fall on the other side: sums are in another order.
    assert error(ours, want(routed, packed, form, True)) < 2e-3


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_matrices_made_whole_are_what_the_codes_stand_for(data):
    form = data.draw(st.sampled_from(["int8", "fp8", "nf4"]), "form")
    E, R, C = (
        data.draw(st.integers(1, 3), "E"),
        data.draw(st.integers(1, 150), "R"),
        32 * data.draw(st.integers(1, 9), "C"),
    )
    w = torch.randn(E, R, C, generator=torch.Generator().manual_seed(R))
    packed, codes, scale = pack(w, form)
    torch.testing.assert_close(widen(codes, scale, form, torch.float32), packed.dequantize(), rtol=1e-6, atol=1e-6)
    half = widen(codes, scale, form, torch.float16)
    torch.testing.assert_close(half, packed.dequantize().half(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["int8", "fp8", "nf4"])
def test_many_rows_an_expert_are_multiplied_with_matrices_made_whole(form, monkeypatch):
    """And with tiles that unpack, where there would be no room."""
    routed, packed, raw = draw(20, 96, 128, 2, 2, form)
    monkeypatch.setattr(quant_experts, "MANY", 20)
    made = []
    monkeypatch.setattr(quant_experts, "widen", lambda *given: made.append(given) or widen(*given))
    wanted = want(routed, packed, form, False)
    assert error(experts(*routed, *raw, form=form), wanted) < 1e-5
    assert len(made) == 2
    monkeypatch.setattr(quant_experts, "WHOLE", 0)
    assert error(experts(*routed, *raw, form=form), wanted) < 1e-5
    assert len(made) == 2


@pytest.mark.parametrize("form", ["int8", "fp8", "nf4"])
def test_rows_longer_than_are_read_at_once(form):
    """Steps over a row add up, the last one of them not full."""
    (x, ids, scores), packed, raw = draw(1, 160, 128, 3, 2, form)
    hidden = quant_pairs.gate_up_pairs(x, ids, *raw[:2], form, most=8)
    ours = quant_pairs.down_tokens(hidden, ids, scores, *raw[2:], form, most=8)
    assert error(ours, want((x, ids, scores), packed, form, False)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_are_quantised_bit_for_bit_as_in_the_reference(dtype):
    x = torch.randn(13, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1], x[2, :128], x[3, 5] = 0, 0, 6e4
    codes, scale = quant_rows.fp8_rows(x)
    wanted, wanted_scale = fp8.fp8_rows(x)
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(codes.float(), wanted.float())
    codes, scale = quant_rows.int8_rows(x)
    rows = quant.int8_rows(x)
    assert torch.equal(codes, rows.codes)
    torch.testing.assert_close(scale, rows.absmax[:, 0] / 127)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_rows_in_order_are_the_rows_where_the_map_says(data):
    E, T, D = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 40)), 4 * data.draw(st.integers(1, 300))
    g = torch.Generator().manual_seed(T)
    x, ids = torch.randn(T, D, generator=g), torch.rand(T, E, generator=g).topk(2).indices
    ids[0, 1], ids[-1, 0] = -1, E  # dropped
    place = expert_map(ids, E, 16).place_TK
    codes, scale = quant_rows.fp8_rows(x)
    ours, our_scale = quant_rows.fp8_rows_in_order(x, place)
    assert torch.equal(our_scale, scale)
    token, slot = torch.where(place >= 0)
    assert torch.equal(ours.float()[place[token, slot].long()], codes.float()[token])


HOPPER = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device=0: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
from labkit.kernels import quant_mm_hopper as hopper
from labkit.kernels.permute import ExpertMap

kernel = hopper._product_fp8
run, compiled = kernel.run, []
kernel.run = lambda *args, **options: compiled.append(run(*args, **options | {"warmup": True}))
hopper.programs = lambda *_: 1
fp8 = lambda *shape: torch.zeros(shape).to(torch.float8_e4m3fn)
whole = lambda *shape: torch.zeros(shape, dtype=torch.int32)
places = ExpertMap(whole(8), whole(4, 2), whole(4), whole(3), whole(4))
rows = hopper.gate_up_fp8(fp8(8, 272), torch.ones(3, 4).mT, fp8(3, 512, 272), torch.ones(3, 4, 3), places)
hopper.down_fp8(*rows, fp8(3, 272, 256), torch.ones(3, 3, 2), places, torch.bfloat16)
for each in compiled:
    print(each.asm["ptx"].count("setmaxnreg"), each.metadata.shared)
"""


def test_the_kernels_for_hopper_compile_without_one():
    """Nothing runs; but warps have registers of their own, and a multiprocessor has the memory."""
    pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", HOPPER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(told) == 2
    assert all(moves > 0 and shared <= 232_448 for moves, shared in told)


def test_why_no_kernel_for_hopper_is_chosen_here():
    assert "interpreted" in quant_experts.why_plain()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_with_its_block_or_token(bad):
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    x[2, 7] = bad
    codes, scale = quant_rows.fp8_rows(x)
    values = codes.float().view(4, 2, 128) * scale[:, :, None]
    assert values[2, 0].isnan().all()
    assert values.isnan().sum() == 128
    assert quant_rows.int8_rows(x)[1].isnan().tolist() == [False, False, True, False]
    for form in ("int8", "fp8"):
        (_, ids, scores), _, raw = draw(4, 256, 128, 2, 1, form)
        y = experts(x, ids, scores, *raw, form=form, activations=True)
        assert y.isfinite().all(1).tolist() == [True, True, False, True]


CASES = [(form, activations) for form in ("int8", "fp8", "nf4") for activations in (False, True)][:-1]


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")  # rows that no pair has stay unwritten
@pytest.mark.parametrize(("form", "activations"), CASES)
@pytest.mark.parametrize("T", [2, 9])
def test_a_dropped_pair_adds_nothing(form, activations, T):
    routed, packed, raw = draw(T, 64, 128, 3, 2, form)
    x, ids, scores = routed
    dropped = ids.clone()
    dropped[0, 1], dropped[1, 0] = -1, 3
    kept = ((dropped >= 0) & (dropped < 3)).float()
    ours = experts(x, dropped, scores, *raw, form=form, activations=activations)
    assert error(ours, want((x, ids, scores * kept), packed, form, activations)) < 2e-3


@pytest.mark.parametrize(("form", "activations"), CASES)
def test_no_tokens_and_tokens_of_zeros(form, activations):
    (x, ids, scores), _, raw = draw(5, 64, 128, 3, 2, form)
    empty = experts(x[:0], ids[:0], scores[:0], *raw, form=form, activations=activations)
    assert empty.shape == (0, 64)
    assert not experts(x * 0, ids, scores, *raw, form=form, activations=activations).any()


def test_it_is_one_operator():
    routed, _, raw = draw(5, 64, 128, 3, 2, "int8")
    torch.library.opcheck(quant_experts._forward, (*routed, *raw, "int8", True))
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*routed, *raw, form="int8"), experts(*routed, *raw, form="int8"))
    with FlopCounterMode(display=False) as counter:
        experts(*routed, *raw, form="int8", activations=True)
    assert counter.get_total_flops() == 6 * 5 * 2 * 64 * 128


def test_tensors_that_are_not_contiguous():
    (x, ids, scores), packed, raw = draw(9, 64, 128, 3, 2, "int8")
    turned = [t.mT.contiguous().mT for t in (x, ids, scores, raw[0], raw[1], raw[2], raw[3])]
    ours = experts(*turned, form="int8")
    assert error(ours, want((x, ids, scores), packed, "int8", False)) < 1e-5


def test_what_does_not_fit_is_refused():
    (x, ids, scores), _, raw = draw(4, 64, 128, 3, 2, "int8")
    with pytest.raises(ValueError, match=r"gate_up_scale is \(3, 128\).*needs\s+\(3, 256\)"):
        experts(x, ids, scores, raw[0], raw[3].new_ones(3, 128), *raw[2:], form="int8")
    with pytest.raises(ValueError, match=r"needs.*float8_e4m3fn"):
        experts(x, ids, scores, *raw, form="fp8")
    with pytest.raises(ValueError, match="NF4 is for weights only"):
        experts(x, ids, scores, *raw, form="nf4", activations=True)
    with pytest.raises(ValueError, match="none of int8, fp8, nf4"):
        experts(x, ids, scores, *raw, form="int4")
    with pytest.raises(ValueError, match="x_TD is"):
        experts(x[:, :32], ids, scores, *raw, form="int8")
    with pytest.raises(ValueError, match="bfloat16"):
        experts(x.bfloat16(), ids, scores, *raw, form="int8")
    with pytest.raises(ValueError, match="no gradients"):
        experts(x.requires_grad_(), ids, scores, *raw, form="int8")
    for form, D, F in (("int8", 24, 32), ("nf4", 32, 48), ("fp8", 64, 96)):
        assert "multiple of" in quant_experts.refuses(form, torch.float32, "cpu", D, F)


def test_the_scale_stands_where_the_block_ends():
    """One weight block a thousand times the others: a scale read from its neighbour would show."""
    (x, ids, scores), _, _ = draw(3, 384, 256, 2, 1, "fp8")
    w = torch.randn(2, 512, 384, generator=torch.Generator().manual_seed(1)) * 384**-0.5
    w[0, 128:256, 128:256] *= 1000
    w[1, 384:, 256:] *= 1000
    down = torch.randn(2, 384, 256, generator=torch.Generator().manual_seed(2)) / 16
    down[1, 256:, 128:] *= 1000
    packed = fp8.fp8(w), fp8.fp8(down)
    raw = packed[0].codes, packed[0].scale, packed[1].codes, packed[1].scale
    for activations in (False, True):
        ours = experts(x, ids, scores, *raw, form="fp8", activations=activations)
        assert error(ours, want((x, ids, scores), packed, "fp8", activations)) < 2e-3
    exact = reference.experts_loop(x, ids, scores, w, down)
    assert error(experts(x, ids, scores, *raw, form="fp8"), exact) < 0.1
