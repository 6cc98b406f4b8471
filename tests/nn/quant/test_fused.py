"""The way to the kernels: what they are given is what was packed, and whatever they cannot do takes the loop."""

import sys
import types

import pytest
import torch
from small import ours

from labkit.kernels.reference import experts_loop
from labkit.nn import quantize
from labkit.nn.quant import fused


def unpacked(codes, scale, form):
    """A weight from the kernels' layout, written down once more."""
    if form == "int8":
        return codes.float() * scale[..., None]
    if form == "fp8":
        wide = scale.repeat_interleave(128, -1).repeat_interleave(128, -2)
        return codes.float() * wide[..., : codes.shape[-2], : codes.shape[-1]]
    from labkit.kernels.nf4 import LEVELS

    code = torch.stack([codes >> 4, codes & 15], -1).flatten(-2).long()
    return torch.tensor(LEVELS)[code] * scale.repeat_interleave(64, -1)[..., : code.shape[-1]]


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins that compute what the kernels promise, from raw tensors, and note what they were told."""
    told = []

    def experts(x_TD, ids_TK, scores_TK, gate_up, gate_up_scale, down, down_scale, *, form, activations):
        told.append((form, activations))
        weights = unpacked(gate_up, gate_up_scale, form), unpacked(down, down_scale, form)
        return experts_loop(x_TD, ids_TK, scores_TK, *weights)

    module = types.ModuleType("labkit.kernels.quant_experts")
    module.experts, module.refuses = experts, lambda *sizes, **more: ""
    monkeypatch.setitem(sys.modules, "labkit.kernels.quant_experts", module)
    monkeypatch.setattr("labkit.kernels.quant_experts", module, raising=False)
    monkeypatch.setattr(fused, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(fused, "absent", lambda: "")
    return told


def call(scheme, **options):
    model = ours()
    quantize(model, scheme, **options)
    experts, draw = model.layers[1].ffn.experts, torch.Generator().manual_seed(3)
    x_TD, scores_TK = torch.randn(7, 64, generator=draw), torch.rand(7, 2, generator=draw)
    ids_TK = torch.rand(7, 4, generator=draw).argsort(1)[:, :2]
    return experts, x_TD, (ids_TK, scores_TK)


@pytest.mark.parametrize("scheme", fused.FORMS)
@torch.no_grad()
def test_kernels_are_given_what_was_packed(kernels, scheme):
    experts, x_TD, decision = call(scheme)
    got = experts(x_TD, decision)
    assert kernels == [fused.FORMS[scheme]]
    fused.DEVICES = ()  # the fixture puts it back
    want = experts(x_TD, decision)
    assert len(kernels) == 1
    limit = 0.05 if fused.FORMS[scheme][1] else 1e-5
    assert ((got - want).norm() / want.norm()).item() < limit


@pytest.mark.parametrize(
    ("scheme", "options", "reason"),
    [
        ("llm_int8", {}, "no kernel for llm_int8"),
        ("nf4", {"block": 32}, "in blocks of 64"),
        ("int8_group", {}, "no ker"),
    ],
)
@torch.no_grad()
def test_what_they_cannot_do_takes_the_loop(kernels, scheme, options, reason):
    experts, x_TD, decision = call(scheme, **options)
    assert reason in fused.refuses(experts, x_TD)
    assert experts(x_TD, decision).isfinite().all()
    assert kernels == []


def test_gradients_take_the_loop(kernels):
    experts, x_TD, decision = call("int8")
    experts(x_TD.requires_grad_(), decision).sum().backward()
    assert x_TD.grad.abs().sum() > 0
    assert kernels == []


def test_other_activations_and_devices_take_the_loop(kernels, monkeypatch):
    experts, x_TD, _ = call("int8")
    experts.activation.swiglu = False
    assert fused.refuses(experts, x_TD) == "the experts are not plain SwiGLU"
    monkeypatch.setattr(fused, "DEVICES", ("cuda",))
    assert fused.refuses(experts, x_TD) == "the tokens are on no GPU"
