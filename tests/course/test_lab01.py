"""Lab 01's references, put together, are a router: equal to transformers' routers and to the specification."""

from __future__ import annotations

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.course import labs
from labkit.kernels import reference
from labkit.nn.oracle import hf_route

EXERCISES = {exercise.name: exercise for exercise in labs.lab("01").exercises}
V3 = {"score_fn": "sigmoid", "selection_bias": True, "route_scale": 2.5}


def config(**fields) -> MoEConfig:
    return MoEConfig(d_model=12, d_expert=4, num_experts=9, top_k=3, **fields)


def assembled(logits_TE, moe, bias_E=None):
    """The notebook's router: scores, the choice with or without a bias, the weights."""
    part = {name: exercise.reference for name, exercise in EXERCISES.items()}
    if moe.score_fn == "topk_softmax":
        ids, logits_TK = part["top_k"](logits_TE, moe.top_k)
        return ids, part["renormalise"](part["scores"](logits_TK), False, moe.route_scale)
    scores_TE = part["scores"](logits_TE, moe.score_fn)
    bias_E = torch.zeros(moe.num_experts) if bias_E is None else bias_E
    ids, chosen_TK = part["select_with_bias"](scores_TE, bias_E, moe.top_k)
    return ids, part["renormalise"](chosen_TK, moe.norm_topk, moe.route_scale)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("mixtral", {}),
        ("olmoe", {}),
        ("olmoe", {"norm_topk": False}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"norm_topk": False}),
        ("deepseek_v3", V3),
        ("deepseek_v3", {**V3, "norm_topk": False}),
        ("gpt_oss", {"score_fn": "topk_softmax", "router_bias": True}),
    ],
)
@pytest.mark.parametrize("T", [1, 7, 65])
def test_the_assembled_router_is_the_familys_own(family, fields, T):
    generator = torch.Generator().manual_seed(T)
    x_TD, weight_ED = torch.randn(T, 12, generator=generator), torch.randn(9, 12, generator=generator)
    moe = config(**fields)
    bias_E = torch.randn(9, generator=generator) * 0.2 if moe.selection_bias else None
    ids, weights = assembled(x_TD @ weight_ED.T, moe, bias_E)
    theirs_TE = hf_route(family, moe, x_TD, weight_ED, bias_E)[2]
    torch.testing.assert_close(torch.zeros(T, 9).scatter(1, ids, weights), theirs_TE, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus", "topk_softmax"])
@pytest.mark.parametrize("norm_topk", [True, False])
def test_the_assembled_router_is_the_specification(score_fn, norm_topk):
    moe = config(score_fn=score_fn, norm_topk=norm_topk, route_scale=1.5)
    logits_TE = 4 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    ids, weights = assembled(logits_TE, moe)
    fields = {"top_k": 3, "score_fn": score_fn, "norm_topk": norm_topk, "route_scale": 1.5}
    their_ids, their_weights = reference.route(logits_TE, **fields)
    assert torch.equal(ids, their_ids)
    torch.testing.assert_close(weights, their_weights)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12, 13)) >= 12


def test_the_oracle_notices_a_bias_that_leaks():
    exercise = EXERCISES["select_with_bias"]
    leaky = next(mistake.like for mistake in exercise.mistakes if mistake.name == "biased_weights")
    with pytest.raises(AssertionError, match="differs from transformers"):
        exercise.against_oracle(leaky)


def test_every_mistake_is_found_in_its_own_implementation():
    for exercise in EXERCISES.values():
        for mistake in exercise.mistakes:
            if mistake.like is not None:
                assert exercise.test(mistake.like).diagnosis == mistake.name


def plus(epsilon):
    """Weights with this much in the denominator."""

    def renormalise(topk_scores, norm_topk=True, route_scale=1.0):
        divisor = topk_scores.sum(-1, keepdim=True) + epsilon if norm_topk else 1.0
        return topk_scores / divisor * route_scale

    return renormalise


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, 1e-9, 1e-12])
def test_an_epsilon_that_shows_is_named(epsilon):
    assert EXERCISES["renormalise"].test(plus(epsilon)).diagnosis == "epsilon_too_big"


def test_an_epsilon_that_does_not_show_passes_and_a_mean_is_no_epsilon():
    exercise = EXERCISES["renormalise"]
    assert exercise.test(plus(1e-25)).passed
    assert exercise.test(lambda s, norm=True, scale=1.0: (s / s.shape[-1] if norm else s) * scale).diagnosis == (
        "wrong_values"
    )


def test_overflow_is_named_in_whatever_families_it_happens():
    def sigmoid_too(logits, score_fn="softmax"):
        z = logits.float()
        return z.exp() / (1 + z.exp()) if score_fn == "sigmoid" else EXERCISES["scores"].reference(logits, score_fn)

    assert EXERCISES["scores"].test(sigmoid_too).diagnosis == "overflows"


def test_the_first_selection_tells_every_mistake_from_the_right_answer_and_from_each_other():
    exercise = EXERCISES["select_with_bias"]
    first = exercise.inputs((0,))[0].args
    seen = {}
    for mistake in exercise.mistakes:
        ids, chosen = mistake.like(first[0].clone(), *first[1:])
        seen.setdefault(str((ids.tolist(), chosen.tolist())), []).append(mistake.name)
    right_ids, right_chosen = exercise.reference(*first)
    assert str((right_ids.tolist(), right_chosen.tolist())) not in seen
    assert sorted(names for names in seen.values() if len(names) > 1) == [["biased_weights", "bias_in_place"]]
