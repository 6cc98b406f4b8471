"""FP8 in blocks: the rounding of a float64 reference, blocks that the width does not fill, and what NaN does."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from peers_quant import normal

from labkit.kernels.fp8 import LARGEST, fp8, fp8_product, fp8_rows
from labkit.kernels.quant import weight_only


def e4m3(x):
    """To the nearest multiple of 2^(exponent − 3), exponent at least −6, ties to even: in float64."""
    x = x.double()
    exponent = torch.frexp(x)[1].double() - 1
    step = torch.exp2(exponent.clamp_min(-6) - 3)
    return (x / step).round() * step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_equal_a_float64_reference(dtype):
    """The quotient is float32's; where a float64 quotient rounds elsewhere, it lies at the very middle of two codes."""
    w = normal(3, 300, 200, dtype=dtype) * torch.logspace(-6, 2, 200).to(dtype)
    packed = fp8(w)
    assert packed.scale.shape == (3, 3, 2)
    for r in range(3):
        for c in range(2):
            where = (..., slice(128 * r, 128 * r + 128), slice(128 * c, 128 * c + 128))
            scale = w[where].double().abs().amax((-1, -2)) / LARGEST
            torch.testing.assert_close(packed.scale[:, r, c].double(), scale, rtol=1e-7, atol=0)
            quotient = w[where].float() / packed.scale[:, r, c, None, None]
            assert torch.equal(packed.codes[where].double(), e4m3(quotient))
            exact = w[where].double() / packed.scale[:, r, c, None, None].double()
            apart = (e4m3(exact) != e4m3(quotient)).nonzero(as_tuple=True)
            halfway = (e4m3(exact)[apart] + e4m3(quotient)[apart]) / 2
            torch.testing.assert_close(exact[apart], halfway, rtol=2e-7, atol=0)


def test_every_code_is_its_own_rounding():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()]
    packed = fp8(codes[None], 254)
    assert packed.scale.item() == 1.0
    assert torch.equal(packed.dequantize()[0], codes)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(-20, 20))
def test_errors_of_any_shape(R, C, block, power):
    w = normal(2, R, C, seed=R) * 2.0**power
    packed = fp8(w, block)
    made = packed.dequantize()
    assert packed.scale.shape == (2, -(-R // block), -(-C // block))
    smallest = packed.scale.amax() * 2.0**-10  # half of the smallest step
    assert ((made - w).abs() <= w.abs() * 2.0**-4 + smallest).all()
    assert torch.equal(fp8(w[1], block).dequantize(), made[1])
    assert torch.equal(packed[1].dequantize(), made[1])


def test_tokens_have_scales_of_their_own():
    x = normal(5, 200)
    x[2, 130] = 1e7
    codes, scale = fp8_rows(x)
    assert scale.shape == (5, 2)
    for c in range(2):
        part = x[:, 128 * c : 128 * c + 128].double()
        torch.testing.assert_close(scale[:, c].double(), part.abs().amax(-1) / LARGEST, rtol=1e-7, atol=0)
        assert torch.equal(codes[:, 128 * c : 128 * c + 128].double(), e4m3(part.float() / scale[:, c, None]))
    error = (codes.float() * scale.repeat_interleave(128, 1)[:, :200] - x).abs()
    assert error[2, :128].mean() < 0.05 < 0.3 < error[2, 131:].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_what_was_packed(dtype):
    x, packed, bias = normal(2, 5, 200, dtype=dtype), fp8(normal(140, 200, seed=1)), normal(140, seed=2, dtype=dtype)
    codes, scale = fp8_rows(x.reshape(-1, 200))
    wide = codes.double() * scale.double().repeat_interleave(128, 1)[:, :200]
    want = (wide @ packed.dequantize(torch.float64).mT + bias.double()).view(2, 5, 140).to(dtype)
    got = fp8_product(x, packed, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)
    torch.testing.assert_close(weight_only(x, packed), x @ packed.dequantize(dtype).mT)


def test_zeros_huge_and_not_finite():
    assert torch.equal(fp8(torch.zeros(3, 130)).dequantize(), torch.zeros(3, 130))
    codes, scale = fp8_rows(torch.zeros(2, 130))
    assert torch.equal(codes.float() * scale[:, :1], torch.zeros(2, 130))
    assert fp8(torch.full((1, 2), 3e38)).dequantize().isfinite().all()
    x, packed = normal(4, 256), fp8(normal(3, 256, seed=1))
    x[1, 3], x[2, 200] = float("nan"), float("inf")
    y = fp8_product(x, packed)
    assert y[1:3].isnan().all()
    assert y[[0, 3]].isfinite().all()


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="1 of 2 weights are NaN or infinite"):
        fp8(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(ValueError, match="block is 0"):
        fp8(torch.ones(2, 2), 0)
    with pytest.raises(ValueError, match=r"expected \[..., C\] and \[R, C\]"):
        fp8_product(torch.ones(1, 3), fp8(torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"give floating point \[T, C\]"):
        fp8_rows(torch.ones(3))


def test_bytes():
    assert fp8(normal(2, 256, 384)).nbytes == 2 * (256 * 384 + 2 * 3 * 4)
