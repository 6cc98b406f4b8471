"""Capacity against a slow queue, laws that must hold, and what a dropped choice is for the experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.capacity import POLICIES, drop, expert_capacity, kept
from labkit.core.padding import real_tokens
from labkit.core.routing import Routing
from labkit.kernels import dispatch


def record(T, E, K, seed=0, *, ties=False, skew=0.0, norm_topk=False, dtype=torch.float32):
    """A softmax router's record; with `ties`, logits of three values only."""
    g = torch.Generator().manual_seed(seed)
    logits_TE = torch.randint(0, 3, (T, E), generator=g).to(dtype) if ties else torch.randn(T, E, generator=g).to(dtype)
    logits_TE = logits_TE + skew * torch.linspace(1, 0, E, dtype=dtype)
    scores_TK, ids_TK = logits_TE.softmax(-1).topk(K)
    return Routing.of(logits_TE, ids_TK, scores_TK / scores_TK.sum(1, keepdim=True) if norm_topk else scores_TK)


def fixed(ids, scores, E=2, logits=None):
    ids, scores = torch.tensor(ids), torch.tensor(scores)
    return Routing.of(torch.zeros(len(ids), E) if logits is None else torch.tensor(logits), ids, scores)


def slow_kept(r, capacity, policy, real):
    """One choice after another, each asking whether its expert has a place left."""
    likelihood_TE = r.logits_TE.log_softmax(-1)
    queue = [(k, t) for k in range(r.top_k) for t in range(r.num_tokens) if real[t]]
    if policy == "score":
        queue.sort(
            key=lambda kt: (
                -r.topk_scores_TK[kt[1], kt[0]].item(),
                -likelihood_TE[kt[1], r.topk_ids_TK[kt[1], kt[0]]].item(),
            )
        )
    taken, seated = [0] * r.num_experts, torch.zeros(r.num_tokens, r.top_k, dtype=torch.bool)
    for k, t in queue:
        e = int(r.topk_ids_TK[t, k])
        if taken[e] < capacity:
            taken[e] += 1
            seated[t, k] = True
    return seated


@st.composite
def situations(draw):
    E = draw(st.integers(1, 6))
    K, T = draw(st.integers(1, E)), draw(st.integers(0, 14))
    how = {"ties": draw(st.booleans()), "norm_topk": draw(st.booleans()), "skew": draw(st.sampled_from([0.0, 2.0]))}
    r = record(T, E, K, draw(st.integers(0, 10_000)), **how)
    real = draw(st.lists(st.booleans(), min_size=T, max_size=T))
    return r, draw(st.integers(0, T + 1)), draw(st.sampled_from(POLICIES)), real


@settings(max_examples=300, derandomize=True, deadline=None)
@given(situations())
def test_kept_equals_a_queue(situation):
    r, capacity, policy, real = situation
    mask_T = torch.tensor(real, dtype=torch.bool)
    assert torch.equal(kept(r, capacity, policy, mask_T), slow_kept(r, capacity, policy, real))
    assert torch.equal(kept(r, capacity, policy), slow_kept(r, capacity, policy, [True] * len(real)))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(situations())
def test_every_expert_is_as_full_as_it_can_be(situation):
    r, capacity, policy, _ = situation
    seated_E = torch.bincount(r.topk_ids_TK[kept(r, capacity, policy)], minlength=r.num_experts)
    assert torch.equal(seated_E, r.tokens_per_expert_E.clamp_max(capacity))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(situations())
def test_padding_changes_nothing_for_real_tokens(situation):
    r, capacity, policy, real = situation
    mask_T = torch.tensor(real, dtype=torch.bool)
    with_padding = kept(r, capacity, policy, mask_T)
    assert torch.equal(with_padding[mask_T], kept(r.keep(mask_T), capacity, policy))
    assert not with_padding[~mask_T].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_first_choices_are_seated_first_by_position(policy):
    r = fixed([[0, 1], [1, 0]], [[0.55, 0.45], [0.6, 0.4]])
    assert kept(r, 1, policy).tolist() == [[True, False], [True, False]]
    r = fixed([[0, 1], [1, 0]], [[0.9, 0.8], [0.5, 0.4]])
    want = {"position": [[True, False], [True, False]], "score": [[True, True], [False, False]]}
    assert kept(r, 1, policy).tolist() == want[policy]


def test_late_tokens_lose_by_position_and_weak_ones_by_score():
    r = fixed([[0]] * 4, [[0.1], [0.4], [0.3], [0.2]])
    assert kept(r, 2).flatten().tolist() == [True, True, False, False]
    assert kept(r, 2, "score").flatten().tolist() == [False, True, True, False]


def test_equal_scores_go_by_probability_then_by_position():
    r = fixed([[0]] * 4, [[1.0]] * 4, logits=[[0.0, 0.0], [2.0, 0.0], [40.0, 0.0], [0.0, 0.0]])
    assert kept(r, 1, "score").flatten().tolist() == [False, False, True, False]
    assert kept(r, 3, "score").flatten().tolist() == [True, True, True, False]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_edges(policy):
    r = record(7, 5, 2, skew=3.0)
    assert not kept(r, 0, policy).any()
    assert kept(r, 7, policy).all()
    assert kept(r, 10**9, policy).all()
    assert kept(record(0, 4, 2), 3, policy).shape == (0, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_hundred_thousand_tokens_are_decided_the_same_twice(policy):
    r = record(100_000, 64, 4, skew=2.0)
    capacity = expert_capacity(100_000, 64, 4, 1.25)
    seated_TK = kept(r, capacity, policy)
    assert torch.equal(seated_TK, kept(r, capacity, policy))
    seated_E = torch.bincount(r.topk_ids_TK[seated_TK], minlength=64)
    assert torch.equal(seated_E, r.tokens_per_expert_E.clamp_max(capacity))


@pytest.mark.parametrize("implementation", dispatch.names())
@pytest.mark.parametrize("policy", POLICIES)
def test_the_experts_compute_what_is_left(policy, implementation):
    g = torch.Generator().manual_seed(1)
    r = record(9, 4, 2, skew=2.0)
    x_TD = torch.randn(9, 8, generator=g)
    gate_up_E2FD, down_EDF = torch.randn(4, 8, 8, generator=g), torch.randn(4, 8, 4, generator=g)
    got = dispatch.experts(x_TD, drop(r, 2, policy), gate_up_E2FD, down_EDF, implementation=implementation)
    want = torch.zeros_like(x_TD)
    for t, k in slow_kept(r, 2, policy, [True] * 9).nonzero().tolist():
        e = r.topk_ids_TK[t, k]
        gate, up = (gate_up_E2FD[e] @ x_TD[t]).chunk(2)
        want[t] += r.topk_scores_TK[t, k] * (down_EDF[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_drop_keeps_the_rest_of_the_record():
    r = Routing.of(*_parts(record(3, 4, 2)), layer=5, tokens=("a", "b", "c"), sequence_T=torch.tensor([0, 0, 1]))
    d = drop(r, 1)
    assert (d.layer, d.tokens, d.sequence_T.tolist()) == (5, ("a", "b", "c"), [0, 0, 1])
    assert torch.equal(d.tokens_per_expert_E, r.tokens_per_expert_E)
    assert torch.equal(d.topk_scores_TK, r.topk_scores_TK * kept(r, 1))


def _parts(r):
    return r.logits_TE, r.topk_ids_TK, r.topk_scores_TK


@pytest.mark.parametrize("policy", POLICIES)
def test_renormalised_scores_have_their_old_sum(policy):
    r = record(12, 4, 2, skew=3.0, dtype=torch.float64)
    kept_TK, d = kept(r, 5, policy), drop(r, 5, policy, renormalise=True)
    something_T = kept_TK.any(1)
    assert 0 < something_T.sum() < 12
    torch.testing.assert_close(d.topk_scores_TK.sum(1)[something_T], r.topk_scores_TK.sum(1)[something_T])
    assert (d.topk_scores_TK[~kept_TK] == 0).all()
    assert (drop(fixed([[0, 1]], [[0.0, 0.0]]), 1, renormalise=True).topk_scores_TK == 0).all()


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradient_of_the_scores(policy, renormalise):
    r = record(8, 4, 2, skew=3.0, dtype=torch.float64)
    scores_TK = r.topk_scores_TK.clone().requires_grad_()

    def dropped(scores_TK):
        return drop(Routing.of(r.logits_TE, r.topk_ids_TK, scores_TK), 3, policy, renormalise=renormalise)

    assert torch.autograd.gradcheck(lambda s: dropped(s).topk_scores_TK, scores_TK)
    dropped(scores_TK).topk_scores_TK.square().sum().backward()
    assert scores_TK.grad.isfinite().all()
    if not renormalise:
        assert (scores_TK.grad[~kept(r, 3, policy)] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "capacity"),
    [
        ((100, 8, 1, 1.0), 13),
        ((100, 10, 1, 1.1), 11),  # 1.1 · 10 is 11.000000000000002 in binary
        ((64, 8, 2, 1.25), 20),
        ((3, 1, 1, 1 / 3), 1),
        ((0, 8, 2, 1.0), 0),
        ((10, 4, 4, 2), 20),
    ],
)
def test_expert_capacity(sizes, capacity):
    assert expert_capacity(*sizes) == capacity


def test_an_even_load_loses_nothing_from_factor_one_on():
    ids = torch.arange(5).repeat(7)[:34, None]
    r = Routing.of(torch.zeros(34, 5), ids, torch.ones(34, 1))
    assert kept(r, expert_capacity(34, 5)).all()
    assert not kept(r, expert_capacity(34, 5) - 1).all()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((-1, 4, 2, 1.0), "num_tokens is -1"),
        ((4.0, 4, 2, 1.0), "num_tokens is 4.0"),
        ((4, 0, 2, 1.0), "num_experts is 0"),
        ((4, 4, True, 1.0), "top_k is True"),
        ((4, 4, 5, 1.0), "4 or fewer"),
        ((4, 4, 2, 0.0), "factor is 0.0"),
        ((4, 4, 2, float("inf")), "factor is inf"),
        ((4, 4, 2, float("nan")), "factor is nan"),
    ],
)
def test_bad_sizes(sizes, says):
    with pytest.raises(ValueError, match=says):
        expert_capacity(*sizes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((-1,), "capacity is -1"),
        ((2.0,), "capacity is 2.0"),
        ((True,), "capacity is True"),
        ((2, "random"), "choose one of position, score"),
        ((2, "score", torch.ones(4)), "4 elements for 3 tokens"),
        ((2, "score", torch.tensor([0.0, 0.0, float("-inf")])), "other values than 0 and 1"),
    ],
)
@pytest.mark.parametrize("function", [kept, drop])
def test_bad_arguments(function, arguments, says):
    with pytest.raises(ValueError, match=says):
        function(record(3, 4, 2), *arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_is_read_in_any_dtype_and_shape(dtype):
    mask = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    assert real_tokens(mask, 4).tolist() == [True, False, False, True]
    assert real_tokens(None, 3).tolist() == [True] * 3
