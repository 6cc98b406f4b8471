"""What every sparse layer must satisfy, as functions: labkit's own does, each patient of lab 03 fails one.

A patient is a layer with one fault that trains without an error. If one of these properties were dropped from our
tests, one of the six faults could come back unseen.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.course.labs._03_clinic import PAD, PATIENTS, RATE, Treatment, weight_moved_by_a_lift
from labkit.nn import MoE, Router, WindowModel
from labkit.nn.oracle import hf_route
from labkit.train import balance, data

B, S, D = 6, 10, 32


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def admitted(patient, treatment):
    """The layer, and a batch for it: x [B, S, D], ids [B, S] with padding at the ends, and the mask."""
    torch.manual_seed(0)
    layer = treatment.layer(patient.config(treatment))
    length_B1 = torch.tensor([10, 4, 7, 3, 9, 5])[:, None]
    ids = torch.randint(1, 256, (B, S), generator=torch.Generator().manual_seed(1))
    ids = ids.masked_fill(torch.arange(S) >= length_B1, PAD)
    return layer, draw(B, S, D) + draw(1, 1, D, seed=5), ids, ids != PAD  # text leans one way: a load is never even


def weights_are_transformers(patient, treatment):
    """Without a bias the router's weights are those of transformers' router with the same matrix."""
    layer, x, _, _ = admitted(patient, treatment)
    x_TD, config = x.flatten(0, 1), layer.config.replace(selection_bias=False)
    record = layer.router(x_TD)
    ours_TE = torch.zeros(B * S, config.num_experts).scatter(1, record.topk_ids_TK, record.topk_scores_TK)
    theirs_TE = hf_route("qwen3_moe", config, x_TD, layer.router.weight_ED.detach())[2]
    torch.testing.assert_close(ours_TE.detach(), theirs_TE, rtol=1e-5, atol=1e-6)


def task_teaches_the_router(patient, treatment):
    """A loss on the layer's output has a gradient at the router's matrix, and not one of rounding errors."""
    layer, x, ids, _ = admitted(patient, treatment)
    loss = (layer(x, ids=ids) * draw(B, S, D, seed=2)).sum()
    (gradient,) = torch.autograd.grad(loss, layer.router.weight_ED)
    assert gradient.norm() > 1e-3


def bias_moves_no_weight(patient, treatment):
    """A selection bias may move the choice; lifted by the same for all, it moves nothing at all."""
    layer, x, ids, _ = admitted(patient, treatment)
    if layer.router.expert_bias_E is not None:
        layer.router.expert_bias_E.copy_(0.1 * draw(layer.config.num_experts, seed=3))
    _, record = layer(x, return_routing=True, ids=ids)
    assert weight_moved_by_a_lift(layer.router, record) < 1e-6


def balance_reaches_the_router(patient, treatment):
    """Whatever balances does: a loss has a gradient at the router's matrix, a nudge moves its bias."""
    layer, x, ids, mask = admitted(patient, treatment)
    _, record = layer(x, return_routing=True, ids=ids)
    if treatment.nudge:
        balance.bias_step(layer.router, record, RATE, mask)
        assert layer.router.expert_bias_E.abs().max() > 0
        return
    loss = treatment.balance(record, mask)
    assert loss.requires_grad
    assert torch.autograd.grad(loss, layer.router.weight_ED)[0].norm() > 1e-4


def padding_has_no_voice(patient, treatment):
    """Other padding: the balance loss stays the same, and so does the step of the bias."""
    layer, x, ids, mask = admitted(patient, treatment)
    other = torch.where(mask[..., None], x, 3 * draw(1, 1, D, seed=4))
    records = [layer(each, return_routing=True, ids=ids)[1] for each in (x, other)]
    if treatment.balance is not None:
        one, two = (treatment.balance(record, mask) for record in records)
        torch.testing.assert_close(one, two)
    if treatment.nudge:
        one, two = (record.keep(mask).tokens_per_expert_E for record in records)
        assert torch.equal(one, two)


def order_of_the_batch_is_nothing(patient, treatment):
    """Sequences in another order get the same answers, in that order."""
    layer, x, ids, mask = admitted(patient, treatment)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    straight, shuffled = layer(x, ids=ids), layer(x[order], ids=ids[order])
    torch.testing.assert_close(shuffled[mask[order]], straight[order][mask[order]], rtol=1e-4, atol=1e-5)


PROPERTIES = {
    "double softmax": weights_are_transformers,
    "renormalised K = 1": task_teaches_the_router,
    "bias in the weights": bias_moves_no_weight,
    "balance loss dropped": balance_reaches_the_router,
    "balance loss over padding": padding_has_no_voice,
    "capacity by position": order_of_the_batch_is_nothing,
}


@pytest.fixture(params=PATIENTS, ids=lambda patient: patient.letter)
def patient(request):
    return request.param


@pytest.fixture(params=PROPERTIES)
def fault(request):
    return request.param


def test_our_layer_has_every_property(fault):
    own = PATIENTS[0]
    for treatment in (Treatment(), Treatment(balance=None, nudge=True), Treatment(norm_topk=False)):
        assert treatment.layer is MoE
        assert type(treatment.layer(own.config(treatment)).router) is Router
        PROPERTIES[fault](own, treatment)


def test_the_mended_twin_has_every_property(patient, fault):
    PROPERTIES[fault](patient, patient.mended)


def test_a_patient_fails_its_own_property(patient):
    with pytest.raises(AssertionError):
        PROPERTIES[patient.fault](patient, patient.sick)


def test_a_patient_has_the_other_properties(patient, fault):
    if fault != patient.fault:
        PROPERTIES[fault](patient, patient.sick)


def test_six_patients_six_faults():
    assert {patient.fault for patient in PATIENTS} == set(PROPERTIES)
    assert [patient.letter for patient in PATIENTS] == list("ABCDEF")


@pytest.mark.parametrize("loss", [balance.switch_loss, balance.sequence_loss, balance.z_loss])
def test_padding_has_no_voice_in_any_loss_of_ours(loss):
    layer, x, _, mask = admitted(PATIENTS[0], Treatment())
    other = torch.where(mask[..., None], x, 3 * draw(1, 1, D, seed=4))
    sequences = {"sequence_T": torch.arange(B).repeat_interleave(S)} if loss is balance.sequence_loss else {}
    one, two = (loss(layer.router(each), mask_T=mask, **sequences) for each in (x, other))
    torch.testing.assert_close(one, two)


def test_every_patient_trains_without_an_error(patient):
    text = data.corpus(bytes_per_domain=9000)
    for treatment in (patient.sick, patient.mended):
        torch.manual_seed(0)
        model = WindowModel(patient.config(treatment), d_embed=16, layer=treatment.layer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        losses = []
        for step in range(20):
            ids = data.sample(text, num_sequences=4, sequence_length=25, seed=step).ids_BS
            ids[1:, 15:] = PAD
            logits, (record,) = model(ids[:, :-1], return_routing=True)
            task = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
            extra = treatment.balance(record, ids[:, :-1] != PAD) if treatment.balance else 0.0
            optimizer.zero_grad()
            (task + extra).backward()
            optimizer.step()
            if treatment.nudge:
                balance.bias_step(model.layers[0].router, record, RATE, ids[:, :-1] != PAD)
            losses.append(task.item())
        assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
