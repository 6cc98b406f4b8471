"""Expert choice against a loop: ties, padding, even load, what the experts compute, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.capacity import expert_capacity
from labkit.kernels import dispatch
from labkit.train.balance import expert_choice


def logits(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) * 2).to(dtype)


def slow_choice(scores_TE, capacity, real):
    """Every expert sorts the real tokens by its score; earlier ones first where equal."""
    T, E = scores_TE.shape
    return [
        sorted((t for t in range(T) if real[t]), key=lambda t: (-scores_TE[t, e].item(), t))[:capacity]
        for e in range(E)
    ]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_expert_choice_equals_a_loop(data):
    T, E = data.draw(st.integers(0, 10)), data.draw(st.integers(1, 6))
    real = data.draw(st.lists(st.booleans(), min_size=T, max_size=T))
    capacity, seed = data.draw(st.integers(0, sum(real))), data.draw(st.integers(0, 999))
    scores_TE = logits(T, E, seed=seed).softmax(-1)
    if data.draw(st.booleans()):
        scores_TE = (scores_TE * 3).round() / 3  # ties
    choice = expert_choice(scores_TE, capacity, torch.tensor(real, dtype=torch.bool))
    want = slow_choice(scores_TE, capacity, real)
    assert choice.token_ids_EC.tolist() == want
    assert choice.scores_EC.tolist() == [[scores_TE[t, e].item() for t in row] for e, row in enumerate(want)]
    assert choice.chosen_TE.tolist() == [[t in want[e] for e in range(E)] for t in range(T)]
    assert choice.experts_per_token_T.tolist() == [sum(t in row for row in want) for t in range(T)]


def test_expert_choice_is_even_whatever_the_scores():
    scores_TE = (logits(64, 8) + torch.linspace(9, 0, 8)).softmax(-1)
    choice = expert_choice(scores_TE, expert_capacity(64, 8, 2))
    assert choice.chosen_TE.sum(0).tolist() == [16] * 8
    assert choice.experts_per_token_T.float().mean() == 2


def test_expert_choice_computes_what_was_chosen_with_its_gradient():
    scores_TE = logits(9, 4).softmax(-1).requires_grad_()
    x_TD, gate_up_E2FD, down_EDF = logits(9, 3, seed=1), logits(4, 4, 3, seed=2), logits(4, 3, 2, seed=3)
    experts = lambda x, chosen: dispatch.experts(x, chosen, gate_up_E2FD, down_EDF)  # noqa: E731
    run = lambda s: expert_choice(s, 3).apply(x_TD, experts)  # noqa: E731
    want = torch.zeros(9, 3, dtype=torch.float64)
    for e, row in enumerate(slow_choice(scores_TE, 3, [True] * 9)):
        for t in row:
            gate, up = (gate_up_E2FD[e] @ x_TD[t]).chunk(2)
            want[t] += scores_TE[t, e].detach() * (down_EDF[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(run(scores_TE).detach(), want)
    assert torch.autograd.gradcheck(run, scores_TE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3), 1), r"\[T, E\]"),
        ((torch.zeros(3, 2).long(), 1), "floating point"),
        ((torch.zeros(3, 2), 4), "0 to 3 of 3 real"),
        ((torch.zeros(3, 2), -1), "capacity is -1"),
        ((torch.zeros(3, 2), True), "capacity is True"),
        ((torch.zeros(3, 2), 2, torch.tensor([1, 0, 0])), "0 to 1 of 1 real"),
        ((torch.zeros(3, 2), 2, torch.ones(4)), "4 elements"),
    ],
)
def test_bad_expert_choices(arguments, says):
    with pytest.raises(ValueError, match=says):
        expert_choice(*arguments)


def test_expert_choice_takes_its_own_tokens():
    with pytest.raises(ValueError, match=r"expected \(3, D\)"):
        expert_choice(torch.zeros(3, 2), 1).apply(torch.zeros(4, 5), lambda x, chosen: x)
