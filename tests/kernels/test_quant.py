"""INT8: bit for bit what bitsandbytes makes, errors within half a step, and clear words for what cannot be packed."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from peers_quant import load, normal

from labkit.kernels.fp8 import fp8
from labkit.kernels.nf4 import nf4, nf4_double
from labkit.kernels.quant import Int8, int8, int8_product, int8_rows, weight_only

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (64, 256)])
def test_codes_scales_and_values_equal_bitsandbytes(shape, dtype):
    load("bitsandbytes")
    w = normal(*shape, dtype=dtype)
    ours = int8(w)
    codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(w.clone())
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax[:, 0], absmax)
    assert torch.equal(ours.dequantize(), torch.ops.bitsandbytes.int8_vectorwise_dequant.default(codes, absmax))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier_columns_equal_bitsandbytes(dtype):
    load("bitsandbytes")
    x = normal(33, 96, dtype=dtype)
    x[3, 5], x[7, 9], x[8, 5] = 20, -8, 6.0
    ours = int8_rows(x, 6.0)
    codes, absmax, columns = torch.ops.bitsandbytes.int8_vectorwise_quant.default(x.clone(), 6.0)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax[:, 0], absmax)
    assert torch.equal(ours.columns, columns)
    assert ours.columns.tolist() == [5, 9]


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_products_equal_those_of_bitsandbytes(threshold):
    """Up to its constant: on the CPU it writes 6.200124e-05 for 1/127², 6.200012e-05."""
    load("bitsandbytes")
    x, packed = normal(9, 256), int8(normal(128, 256, seed=1) * 0.1)
    x[2, 7] = 30
    codes, absmax, columns = torch.ops.bitsandbytes.int8_vectorwise_quant.default(x.clone(), threshold)
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(
        x, codes, packed.codes, absmax, packed.absmax[:, 0], columns
    )
    inside = torch.ops.bitsandbytes.int8_scaled_mm.default(codes, packed.codes, absmax, packed.absmax[:, 0])
    ours = int8_product(x, packed, threshold=threshold)
    assert ((ours - theirs).abs() <= 2e-5 * inside.float().abs() + 1e-5).all()


def test_against_torchao():
    """Its scale is a 127.5th of the largest, so its largest weights are cut; bytes are the same, errors near."""
    quantization = load("torchao.quantization")
    layer = torch.nn.Linear(96, 64, bias=False)
    w = layer.weight.data.copy_(normal(64, 96)).clone()
    ours = int8(w)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    theirs = layer.weight
    assert (theirs.qdata.int() - ours.codes.int()).abs().max() <= 1
    torch.testing.assert_close(theirs.scale.flatten() * 127.5, ours.absmax.flatten())
    assert theirs.qdata.nbytes + theirs.scale.nbytes == ours.nbytes
    errors = [(made - w).abs().mean().item() for made in (theirs.dequantize(), ours.dequantize())]
    assert 0.9 < errors[0] / errors[1] < 1.1


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["tensor", "row", "group"]),
    st.integers(1, 20), st.integers(-30, 30),
)  # fmt: skip
def test_no_weight_moves_by_more_than_half_a_step(E, R, C, per, group, power):
    w = normal(E, R, C, seed=C) * 2.0**power
    packed = int8(w, per, group)
    wide = packed.scale.repeat_interleave(group, -1)[..., :C] if per == "group" else packed.scale
    assert ((packed.dequantize() - w).abs() <= 0.5001 * wide).all()
    assert packed.shape == w.shape
    assert packed.codes.abs().max() <= 127
    assert packed.absmax.shape == {"tensor": (E, 1, 1), "row": (E, R, 1), "group": (E, R, -(-C // group))}[per]
    assert torch.equal(packed[E - 1].dequantize(), int8(w[E - 1], per, group).dequantize())


def test_an_outlier_costs_its_own_row_or_group_only():
    w = normal(4, 64)
    w[1, 3] = 1e4
    error = {
        per: (int8(w, per, 16).dequantize() - w).abs()
        for per in ("tensor", "row", "group")
    }  # fmt: skip
    assert error["tensor"][0].mean() > 0.5
    assert error["row"][0].mean() < 0.02 < 0.5 < error["row"][1].mean()
    assert error["group"][1, 16:].mean() < 0.02


def test_zeros_and_tiny_weights_stay_near_zero():
    assert torch.equal(int8(torch.zeros(3, 8)).dequantize(), torch.zeros(3, 8))
    tiny = int8(torch.full((1, 4), 1e-42)).dequantize()
    assert tiny.isfinite().all()
    assert tiny.abs().max() < 1e-41


@pytest.mark.parametrize(
    ("w", "words"),
    [
        (torch.ones(3), "give floating point"),
        (torch.ones(0, 3), "not empty"),
        (torch.ones(2, 3, dtype=torch.int32), "give floating point"),
        (torch.tensor([[1.0, NAN, INF]]), "2 of 3 weights are NaN or infinite"),
    ],
)
def test_other_weights_are_refused(w, words):
    with pytest.raises(ValueError, match=words):
        int8(w)


def test_other_settings_are_refused():
    w = torch.ones(2, 4)
    for arguments, words in [(("column",), "'tensor', 'row' or 'group'"), (("group", 0), "1 or more")]:
        with pytest.raises(ValueError, match=words):
            int8(w, *arguments)
    with pytest.raises(ValueError, match="a scale for every row"):
        int8_product(torch.ones(1, 4), int8(w, "tensor"))
    with pytest.raises(ValueError, match=r"take one expert of several: packed\[e\]"):
        weight_only(torch.ones(1, 4), int8(torch.ones(3, 2, 4)))
    with pytest.raises(ValueError, match="threshold is -1"):
        int8_rows(torch.ones(1, 4), -1)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_a_token_that_is_not_finite_spoils_no_other(threshold):
    x, packed = normal(4, 32), int8(normal(8, 32, seed=1))
    x[1, 3], x[2, 4] = NAN, INF
    assert int8_rows(x).absmax[1:3].isnan().all()
    y = int8_product(x, packed, threshold=threshold)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[0].isfinite().all()
    assert y[3].isfinite().all()


def test_outliers_in_high_precision_save_the_rest():
    x, packed = normal(16, 64), int8(normal(8, 64, seed=1))
    x[:, 5] = 500.0
    want = weight_only(x, packed)
    error = [(int8_product(x, packed, threshold=t) - want).abs().mean().item() for t in (0.0, 6.0)]
    assert error[1] < 0.02 * error[0]


def test_products_keep_shape_dtype_and_bias():
    x, packed, bias = normal(2, 3, 32, dtype=torch.bfloat16), int8(normal(8, 32, seed=1)), normal(8, seed=2)
    for product in (weight_only, int8_product):
        plain, biased = product(x, packed), product(x, packed, bias.bfloat16())
        assert plain.shape == (2, 3, 8)
        assert plain.dtype == torch.bfloat16
        torch.testing.assert_close(biased, plain + bias.bfloat16(), atol=0.1, rtol=0.02)
    want = x.float() @ packed.dequantize().mT
    torch.testing.assert_close(int8_product(x, packed).float(), want, atol=0.3, rtol=0.02)


def test_whole_numbers_are_summed_exactly():
    """In float32 a sum of 2,048 products of 127 would already be rounded."""
    x, w = torch.full((1, 2048), 1.0), torch.full((1, 2048), 1.0)
    w[0, -1] = 1 / 127
    assert int8_product(x, int8(w)).item() == pytest.approx(2047 + 1 / 127, abs=2e-4)


@pytest.mark.parametrize(
    "pack", [int8, lambda w: int8(w, "tensor"), lambda w: int8(w, "group", 32), nf4, nf4_double, fp8]
)
def test_rows_are_looked_up_without_the_rest(pack):
    packed, ids = pack(normal(300, 96)), torch.tensor([[0, 299], [130, 0]])
    assert torch.equal(packed.rows(ids), packed.dequantize()[ids])


def test_without_values_the_bytes_are_known():
    for pack in (int8, nf4, nf4_double, fp8):
        assert pack(torch.empty(3, 70, 130, device="meta")).nbytes == pack(normal(3, 70, 130)).nbytes


def test_bytes_are_those_of_storage():
    w = normal(4, 64, 128)
    assert int8(w).nbytes == 4 * 64 * (128 + 4)
    assert int8(w, "tensor").nbytes == 4 * (64 * 128 + 4)
    assert int8(w, "group", 32).nbytes == 4 * 64 * (128 + 4 * 4)
    assert nf4(w).nbytes == 4 * 64 * (128 // 2 + 2 * 4)
    assert isinstance(int8(w)[0], Int8)
    assert len(int8(w)) == 4
