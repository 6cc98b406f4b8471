"""Lab 03: its references are `train.balance` and transformers; its clinic tells the six faults apart."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersTop1Router,
    router_z_loss_func,
)

from labkit.core import capacity
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.course import labs, progress
from labkit.course.labs import _03_clinic, _03_mend
from labkit.course.labs._03_diagnoses import CHARTS, DIAGNOSES, SUSPECTS, clinic
from labkit.course.labs._03_oracles import switch_turns_away
from labkit.course.master import read_master
from labkit.kernels import reference
from labkit.nn import Router
from labkit.train import balance

EXERCISES = {exercise.name: exercise for exercise in labs.lab("03").exercises}
RIGHT = {name: exercise.reference for name, exercise in EXERCISES.items()}
SIZES = [(1, 3, 1), (7, 5, 2), (65, 9, 3)]
LETTER_OF = {
    "double_softmax": "B",
    "balance_loss_dropped": "D",
    "balance_loss_detached": "D",
    "renormalised_k_one": "E",
    "bias_leaks": "F",
    "drops_by_position": "C",
    "padding_counts": "A",
}


def batch(T, E, K, seed=0):
    draw = torch.Generator().manual_seed(100 * seed + T)
    logits_TE = 1.5 * torch.randn(T, E, generator=draw)
    mask_T = torch.rand(T, generator=draw) < 0.6
    mask_T[0] = True
    values, ids = logits_TE.softmax(-1).topk(K)
    return logits_TE, ids, values / values.sum(-1, keepdim=True), mask_T


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("T", "E", "K"), SIZES)
def test_aux_loss_and_its_gradient_are_transformers_and_ours(T, E, K, seed):
    logits_TE, ids, weights, mask_T = batch(T, E, K, seed)
    for mask in (None, mask_T):
        gradients = []
        for which in ("mine", "theirs", "ours"):
            z = logits_TE.clone().requires_grad_()
            if which == "mine":
                loss = RIGHT["aux_loss"](z, ids, mask)
            elif which == "theirs":
                attention = None if mask is None else mask[None].long()
                loss = load_balancing_loss_func((z,), num_experts=E, top_k=K, attention_mask=attention)
            else:
                loss = balance.switch_loss(Routing.of(z, ids, weights), mask)
            gradients.append((loss.detach(), torch.autograd.grad(loss, z)[0]))
        for value, gradient in gradients[1:]:
            torch.testing.assert_close(value, gradients[0][0])
            torch.testing.assert_close(gradient, gradients[0][1])


@pytest.mark.parametrize(("T", "E", "K"), SIZES)
def test_the_other_references_are_ours(T, E, K):
    logits_TE, ids, weights, mask_T = batch(T, E, K)
    record = Routing.of(logits_TE, ids, weights)
    torch.testing.assert_close(RIGHT["z_loss"](logits_TE, mask_T), balance.z_loss(record, mask_T))
    torch.testing.assert_close(RIGHT["z_loss"](logits_TE), router_z_loss_func(logits_TE[None]))
    counts_E, bias_E = record.tokens_per_expert_E, torch.linspace(-0.1, 0.1, E)
    ours_E = balance.update_bias(bias_E, counts_E, rate=0.01)
    assert torch.equal(RIGHT["update_bias"](bias_E, counts_E, 0.01), ours_E)
    for places in (0, 1, 3, T):
        for policy in ("position", "score"):
            kept_TK = capacity.kept(record, places, policy)
            if K > 1 or policy == "position":  # with K = 1 all renormalised weights are equal
                assert torch.equal(RIGHT["keep"](ids, weights, places, policy), kept_TK)
    scores_TE = logits_TE.softmax(-1)
    for places in {1, (T + 1) // 2, T}:
        tokens_EC, scores_EC = RIGHT["expert_choice"](scores_TE, places)
        ours = balance.expert_choice(scores_TE, places)
        assert torch.equal(tokens_EC, ours.token_ids_EC)
        assert torch.equal(scores_EC, ours.scores_EC)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_mended_step_is_our_router_our_capacity_and_our_loss(k):
    T, E, D = 40, 6, 4
    logits_TE, _, _, _ = batch(T, E, k)
    draw = torch.Generator().manual_seed(k)
    outputs, target = torch.randn(T, E, D, generator=draw), torch.randn(T, D, generator=draw)
    bias_E, real, places = 0.2 * torch.randn(E, generator=draw), torch.ones(T, dtype=torch.bool), 3 + 4 * k
    config = MoEConfig(d_model=D, d_expert=2, num_experts=E, top_k=k, norm_topk=k > 1, selection_bias=True)
    router, z = Router(config), logits_TE.clone().requires_grad_()
    router.expert_bias_E.copy_(bias_E)
    record = Routing.of(z, *router.decide(z))
    weights = capacity.drop(record, places, "score").topk_scores_TK
    y = (weights[..., None] * outputs[torch.arange(T)[:, None], record.topk_ids_TK]).sum(1)
    loss = F.mse_loss(y, target) + balance.switch_loss(record, alpha=0.3)
    want = (y.detach(), loss.detach(), torch.autograd.grad(loss, z)[0])
    assert (weights == 0).any()
    for mine, theirs in zip(RIGHT["mend"](logits_TE, outputs, target, real, bias_E, k, places, 0.3), want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_score_needs_no_second_softmax():
    logits_TE = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 10
    config = MoEConfig(**_03_clinic.SIZES, top_k=2)
    largest = _03_clinic.DoubleSoftmax(config).decide(logits_TE)[1].max()
    assert largest <= torch.e / (1 + torch.e) + 1e-6 < reference.route(logits_TE, top_k=2)[1].max()


@pytest.mark.parametrize("name", sorted(name for name in EXERCISES if EXERCISES[name].oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    if name == "keep" and not switch_turns_away():
        pytest.skip("the Switch router of this transformers never turns a token away")
    assert EXERCISES[name].against_oracle(EXERCISES[name].reference, seeds=(11, 12, 13)) >= 8


@pytest.mark.skipif(not switch_turns_away(), reason="this transformers' Switch router never turns a token away")
def test_the_oracle_of_keep_reads_the_dispatch_wherever_a_version_of_transformers_puts_it(monkeypatch):
    forward = SwitchTransformersTop1Router.forward

    def swapped(self, hidden):
        dispatched, probs, logits = forward(self, hidden)
        return probs, dispatched, logits

    monkeypatch.setattr(SwitchTransformersTop1Router, "forward", swapped)
    assert EXERCISES["keep"].against_oracle(RIGHT["keep"]) >= 4


def test_the_oracle_notices_padding_that_counts():
    leaky = next(mistake.like for mistake in EXERCISES["aux_loss"].mistakes if mistake.name == "padding_counts")
    with pytest.raises(AssertionError, match="differs from transformers"):
        EXERCISES["aux_loss"].against_oracle(leaky)


def test_gradient_cases_are_not_lost_among_equal_inputs():
    for name in ("aux_loss", "z_loss", "expert_choice"):
        assert any(case.needs_grad for case in EXERCISES[name].inputs((0,)))


def examination():
    """The notebook's cell that asks six questions of `mend`."""
    (cell,) = [cell for cell in read_master("03").cells if cell.is_code and "other padding, same loss" in cell.source]
    return cell.source


@pytest.mark.parametrize("name", ["right", *LETTER_OF])
def test_the_examination_finds_each_fault_and_nothing_else(name):
    likes = {mistake.name: mistake.like for mistake in _03_mend.MISTAKES} | {"right": _03_mend.mend}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(examination(), {"torch": torch, "F": F, "mend": likes[name]})
    failed = [line[0] for line in printed.getvalue().splitlines() if line.endswith("False")]
    assert len(printed.getvalue().splitlines()) == 6
    assert failed == ([] if name == "right" else [LETTER_OF[name]])


def test_the_form_of_the_clinic(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    clinic()
    assert capsys.readouterr().out.count("What is wrong with patient") == 6
    clinic("faebcd")
    assert progress.read()["recaps"]["03.clinic"]["right"] == 6
    clinic("abcde-")
    assert progress.read()["recaps"]["03.clinic"]["right"] == 0
    with pytest.raises(ValueError, match="2 answers for 6 questions"):
        clinic("ab")


def test_the_form_knows_every_patient_and_every_reply_is_its_own():
    assert {patient.letter: patient.fault for patient in _03_clinic.PATIENTS} == {
        letter: chart.suspect for letter, chart in CHARTS.items()
    }
    assert list(SUSPECTS) != [chart.suspect for chart in CHARTS.values()]
    replies = [choice.says for question in DIAGNOSES for choice in question.choices]
    assert len(set(replies)) == 36


def test_no_question_betrays_its_answer_by_its_place():
    for questions in (DIAGNOSES, labs.lab("03").questions):
        right = [[choice.right for choice in question.choices].index(True) for question in questions]
        assert set(right) == set(range(len(questions[0].choices)))


def test_mend_says_which_patient_has_the_fault():
    says = {mistake.name: mistake.says for mistake in _03_mend.MISTAKES}
    for name, letter in LETTER_OF.items():
        assert says[name].startswith(f"Patient {letter}")
