"""Calibration: inputs are measured where they are, rare experts are reached or named, and clipping costs less error."""

import copy

import pytest
import tiny_models
import torch
from small import ids, ours

from labkit.nn import quantize
from labkit.nn.quant import SCHEMES, calibrate
from labkit.nn.quant.clip import clipped
from labkit.nn.quant.modules import held_of

CLIPS = [name for name, scheme in SCHEMES.items() if scheme.clips]
EXPERTS = "layers.1.ffn.experts"


def lopsided():
    """A model whose router never chooses expert 3."""
    model = ours(moe={"selection_bias": True})
    model.layers[1].ffn.router.expert_bias_E[3] = -1e4
    return model


def test_moments_are_those_of_the_inputs():
    model, given = ours(), {}
    for path in ("layers.0.attention.query", "layers.0.ffn", EXPERTS):
        model.get_submodule(path).register_forward_pre_hook(lambda m, x, path=path: given.update({path: x}))
    found = calibrate(model, [ids()], reach="every")
    x = given["layers.0.attention.query"][0].reshape(-1, 64)
    torch.testing.assert_close(found.moments["layers.0.attention.query.weight"], x.square().mean(0))
    x, layer = given["layers.0.ffn"][0].reshape(-1, 64), model.layers[0].ffn
    gate, up = (x @ layer.gate_up_2FD.mT).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(found.moments["layers.0.ffn.down_DF"], hidden.square().mean(0))
    x, experts = given[EXPERTS][0], model.get_submodule(EXPERTS)
    gate, up = torch.einsum("td,efd->etf", x, experts.gate_up_E2FD).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(found.moments[f"{EXPERTS}.down_EDF"], hidden.square().mean(1))
    torch.testing.assert_close(found.moments[f"{EXPERTS}.gate_up_E2FD"], x.square().mean(0).expand(4, -1))


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3", "qwen2_moe"])
def test_transformers_too(family):
    """GPT-OSS: the second moment is that of what the biased, clamped, interleaved activation gives."""
    model = tiny_models.build(family)
    batch = tiny_models.batch().ids_BS
    found = calibrate(model, [batch], reach="routed")
    assert not found.unreached or min(map(min, found.unreached.values())) >= 0
    path = next(iter(found.routed))
    experts = model.get_submodule(path)
    (given,) = tiny_models.given_to([experts], lambda: model(batch))
    x, chosen = given[0], given[1]
    expert = int(found.routed[path].argmax())
    x = x[(chosen == expert).any(-1)]
    assert len(x) == found.routed[path][expert]
    w = experts.gate_up_proj[expert]
    up = x @ w + experts.gate_up_proj_bias[expert] if family == "gpt_oss" else x @ w.mT
    hidden = experts._apply_gate(up)
    torch.testing.assert_close(found.moments[f"{path}.down_proj"][expert], hidden.square().mean(0))
    packed = copy.deepcopy(model)
    quantize(packed, "nf4", calibration=calibrate(packed, [batch]))
    assert packed(batch).logits.isfinite().all()


def test_an_expert_that_nothing_reaches_is_named():
    model = lopsided()
    found = calibrate(model, [ids(), ids(3, 5)], reach="routed")
    assert found.unreached == {EXPERTS: (3,)}
    assert found.routed[EXPERTS].sum() == 2 * (2 * 9 + 3 * 5)
    assert "not reached: 3" in repr(found)
    report = quantize(model, "nf4", calibration=found)
    assert f"not reached by calibration, so not clipped: {EXPERTS}, experts (3,)" in repr(report)
    plain = lopsided()
    quantize(plain, "nf4")
    ours_, theirs = (m.get_submodule(EXPERTS).up.packed.absmax for m in (model, plain))
    assert torch.equal(ours_[3], theirs[3])
    assert not torch.equal(ours_[0], theirs[0])


@pytest.mark.parametrize("floor", [1, 5, 18, 100])
def test_a_floor_reaches_everyone(floor):
    found = calibrate(lopsided(), [ids(), ids(3, 5)], reach="floor", floor=floor)
    routed_E, seen_E = found.routed[EXPERTS], found.seen[EXPERTS]
    assert (seen_E >= torch.maximum(routed_E, torch.tensor(min(floor, 33)))).all()
    assert (seen_E <= torch.maximum(routed_E, torch.tensor(floor))).all()
    assert found.unreached == {}
    again = calibrate(lopsided(), [ids(), ids(3, 5)], reach="floor", floor=floor)
    assert all(torch.equal(found.moments[name], again.moments[name]) for name in found.moments)


def test_every_expert_sees_every_token():
    found = calibrate(lopsided(), [ids(), ids(3, 5)])
    assert found.seen[EXPERTS].tolist() == [33] * 4
    assert found.routed[EXPERTS][3] == 0


@pytest.mark.parametrize("scheme", CLIPS)
def test_clipping_never_costs_more_in_what_it_minimises(scheme):
    draw = torch.Generator().manual_seed(0)
    w, moment = torch.randn(2, 24, 200, generator=draw), torch.rand(2, 200, generator=draw) ** 4
    w[0, 3, 7] = 30.0
    chosen = SCHEMES[scheme]
    error = [
        ((packed.dequantize() - w).square() * moment[:, None]).sum().item()
        for packed in (chosen.packed(w), clipped(w, chosen, moment))
    ]
    assert error[1] < (1.0 if scheme == "int8_tensor" else 0.97) * error[0]
    same = clipped(w, chosen, torch.zeros(200))
    assert torch.equal(same.dequantize(), chosen.packed(w).dequantize())


def test_the_model_is_as_it_was():
    model = ours().train()
    before = copy.deepcopy(model.state_dict())
    calibrate(model, [ids()])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not held_of(model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reach": "all"}, "reach is 'all'; choose one of every, floor, routed"),
        ({"floor": 0}, "floor is 0"),
        ({"batches": []}, "no batch of text"),
        ({"rooms": "expert"}, "rooms has 'expert'"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        calibrate(ours(), **{"batches": [ids()], **arguments})


def test_a_calibration_must_fit():
    model = ours()
    found = calibrate(model, [ids()], rooms="experts")
    with pytest.raises(ValueError, match=r"attention.query.weight was not calibrated at \(64,\)"):
        quantize(model, "nf4", calibration=found)
    with pytest.raises(ValueError, match="fp8 chooses no scales by what it sees"):
        quantize(model, "fp8", rooms="experts", calibration=found)
    assert not held_of(model)
    quantize(model, "nf4_double", rooms="experts", calibration=found)
