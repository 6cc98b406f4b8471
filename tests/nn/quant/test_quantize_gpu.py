"""On a GPU packed models move with `.to`, run on the kernels where there are some, and agree with the CPU."""

import copy

import pytest
import torch
from small import ids, ours

from labkit.core.config import MoEConfig
from labkit.nn import MoE, quantize
from labkit.nn.quant import SCHEMES, calibrate, fused, load, save

PACKED = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scheme", PACKED)
@torch.no_grad()
def test_as_on_the_cpu(scheme, tmp_path):
    model = ours()
    there = copy.deepcopy(model).to("cuda")
    quantize(model, scheme)
    quantize(there, scheme)
    moved = copy.deepcopy(model).to("cuda")
    for name, tensor in moved.named_buffers():
        assert torch.equal(tensor.float(), there.get_buffer(name).float()), name
    want, got = model(ids()).logits, moved(ids().to("cuda")).logits.cpu()
    assert ((got - want).norm() / want.norm()).item() < 0.1
    save(moved, tmp_path)
    torch.testing.assert_close(load(tmp_path, device="cuda")(ids().to("cuda")).logits.cpu(), got)


@pytest.mark.parametrize("scheme", fused.FORMS)
@pytest.mark.parametrize("T", [1, 5, 300])
@torch.no_grad()
def test_the_kernels_agree_with_the_loop(scheme, T, monkeypatch):
    holder = torch.nn.Module()
    holder.ffn = MoE(MoEConfig(d_model=256, d_expert=128, num_experts=8, top_k=2)).to("cuda", torch.bfloat16)
    quantize(holder, scheme)
    x = torch.randn(T, 256, device="cuda", dtype=torch.bfloat16)
    experts, routing = holder.ffn.experts, holder.ffn.router(x)
    assert fused.refuses(experts, x) == ""
    got = experts(x, routing).float()
    monkeypatch.setattr(fused, "DEVICES", ())
    want = experts(x, routing).float()
    assert ((got - want).norm() / want.norm()).item() < 0.03


def test_calibration_on_the_gpu():
    model = ours().to("cuda")
    found = calibrate(model, [ids()], reach="floor", floor=5)
    quantize(model, "nf4", calibration=found)
    assert model(ids().to("cuda")).logits.isfinite().all()


@pytest.mark.parametrize("double", [False, True])
def test_nf4_equals_bitsandbytes_there(double):
    functional = pytest.importorskip("bitsandbytes.functional", exc_type=ImportError)
    from labkit.kernels.nf4 import nf4, nf4_double

    w = torch.randn(256, 512, device="cuda")
    codes, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=double)
    packed = (nf4_double if double else nf4)(w)
    assert (packed.codes.flatten() == codes.flatten()).float().mean() > 0.9999  # its reciprocals may be approximate
    values = functional.dequantize_4bit(codes, state)
    assert ((packed.dequantize() - values).abs() < 1e-2).float().mean() > 0.999
