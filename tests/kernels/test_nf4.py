"""NF4: the codes of bitsandbytes, the error that normal weights must have, and rows that end inside a block."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from peers_quant import load, normal

from labkit.kernels import nf4 as formats
from labkit.kernels.nf4 import dynamic_levels, nf4, nf4_double
from labkit.kernels.quant import weight_only

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def theirs(w, double=False):
    functional = load("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(w.clone(), blocksize=64, quant_type="nf4", compress_statistics=double)
    return codes, state, functional.dequantize_4bit(codes, state)


def test_levels_equal_bitsandbytes():
    functional = load("bitsandbytes.functional")
    assert torch.equal(torch.tensor(formats.LEVELS), functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_levels(), functional.create_dynamic_map())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (300, 192), (128, 256)])
def test_codes_scales_and_values_equal_bitsandbytes(shape, dtype):
    w = normal(*shape, dtype=dtype)
    ours, (codes, state, values) = nf4(w), theirs(w)
    assert torch.equal(ours.codes.flatten(), codes.flatten())
    assert torch.equal(ours.absmax.flatten(), state.absmax)
    assert torch.equal(ours.dequantize(dtype), values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 128), (300, 192), (128, 256)])
def test_double_quantisation_equals_bitsandbytes(shape, dtype):
    """On the CPU it looks scales up in a table of 65,536 entries, so next to a boundary it may take the other side."""
    w = normal(*shape, dtype=dtype)
    ours, (codes, state, values) = nf4_double(w), theirs(w, double=True)
    assert torch.equal(ours.codes.flatten(), codes.flatten())
    assert torch.equal(ours.offset, state.offset)
    assert torch.equal(ours.absmax_scale, state.state2.absmax)
    mine, yours = ours.absmax_codes.flatten().long(), state.absmax.flatten().long()
    for place in (mine != yours).nonzero().flatten().tolist():
        scaled = (nf4(w).absmax.flatten()[place] - ours.offset) / ours.absmax_scale[place // 256]
        assert abs(scaled - (dynamic_levels()[mine[place]] + dynamic_levels()[yours[place]]) / 2) < 2 / 65535
    same = (mine == yours).repeat_interleave(64).view(shape)
    assert torch.equal(ours.dequantize(dtype)[same], values[same])
    assert (mine != yours).sum() <= 0.02 * len(mine)


def test_error_on_normal_weights():
    """E|x − x̂| over draws of N(0, 1), itself and not relative to x, in blocks of 64."""
    w = normal(1024, 1024)
    assert (nf4(w).dequantize() - w).abs().mean().item() == pytest.approx(0.0729, abs=0.001)
    assert (nf4_double(w).dequantize() - w).abs().mean().item() == pytest.approx(0.0729, abs=0.001)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 200), st.sampled_from([2, 32, 64, 128]), st.booleans())
def test_widths_that_the_block_does_not_divide(E, R, C, block, double):
    """Every row is as if it were padded with zeros, and every expert as if it were alone."""
    w = normal(E, R, C, seed=C)
    pack = nf4_double if double else nf4
    packed = pack(w, block)
    made = packed.dequantize()
    assert made.shape == w.shape == packed.shape
    assert packed.codes.shape == (E, R, -(-C // 2))
    assert torch.equal(packed[0].dequantize(), made[0])
    assert torch.equal(pack(w[0], block).dequantize(), made[0])
    if not double:
        padded = torch.nn.functional.pad(w, (0, -C % block))
        assert torch.equal(nf4(padded, block).dequantize()[..., :C], made)
        levels = torch.tensor(formats.LEVELS)
        wide = packed.absmax.repeat_interleave(block, -1)[..., :C]
        nearest = (w[..., None] - levels * wide[..., None]).abs().amin(-1)
        torch.testing.assert_close((made - w).abs(), nearest, atol=1e-6, rtol=1e-5)


def test_zeros_and_one_huge_weight():
    for pack in (nf4, nf4_double):
        assert torch.equal(pack(torch.zeros(3, 70)).dequantize(), torch.zeros(3, 70))
    w = normal(2, 128)
    w[0, 0] = 1e30
    made = nf4(w).dequantize()
    assert made[0, 0] == w[0, 0]
    assert (made[0, 1:64] == 0).all()
    assert (made[0, 64:] - w[0, 64:]).abs().mean() < 0.1


def test_what_cannot_be_packed_is_refused():
    for pack in (nf4, nf4_double):
        with pytest.raises(ValueError, match="1 of 4 weights are NaN or infinite"):
            pack(torch.tensor([[1.0, 2.0, 3.0, float("nan")]]))
        with pytest.raises(ValueError, match="an even number of columns"):
            pack(torch.ones(2, 4), 3)
        with pytest.raises(ValueError, match="give floating point"):
            pack(torch.ones(4))


def test_bytes_and_product():
    w, x = normal(256, 512), normal(3, 512, seed=1)
    assert nf4(w).nbytes == 256 * 512 // 2 + 256 * 8 * 4
    assert nf4_double(w).nbytes == 256 * 512 // 2 + 256 * 8 + 8 * 4 + 4
    torch.testing.assert_close(weight_only(x, nf4(w)), x @ nf4(w).dequantize().mT)
