"""Balance losses against transformers, the papers' formulas and finite differences, and without padding's influence."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn.fixed import StaticRouter
from labkit.train.balance import sequence_loss, switch_loss, z_loss

SIZES = [(5, 1, 1), (7, 4, 1), (12, 6, 2), (9, 8, 3), (6, 4, 4)]  # T, E, K
SEQUENCES = (3, 4)  # B, S


def logits(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) * 2).to(dtype)


def record(logits_TE, K, ids_TK=None, **labels):
    """A softmax router's record, or the one of these choices."""
    ids_TK = logits_TE.detach().topk(K).indices if ids_TK is None else ids_TK
    return Routing.of(logits_TE, ids_TK, logits_TE.softmax(-1).gather(1, ids_TK), **labels)


def of_sequence():
    B, S = SEQUENCES
    return torch.arange(B).repeat_interleave(S)


LOSSES = {
    "switch": switch_loss,
    "switch, two layers": lambda r, mask_T=None: switch_loss([r, record(2 * r.logits_TE, r.top_k)], mask_T),
    "sequence, sigmoid": lambda r, mask_T=None: sequence_loss(r, of_sequence(), mask_T),
    "sequence, softmax": lambda r, mask_T=None: sequence_loss(r, of_sequence(), mask_T, score_fn="softmax"),
    "sequence, sqrtsoftplus": lambda r, mask_T=None: sequence_loss(r, of_sequence(), mask_T, score_fn="sqrtsoftplus"),
    "z": z_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# what every loss owes


@every_loss
def test_gradient_equals_finite_differences(loss):
    """The choices stay; only the probabilities move."""
    logits_TE = logits(12, 5).requires_grad_()
    ids_TK = logits_TE.detach().topk(2).indices
    mask_T = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1])
    for mask in (None, mask_T):
        assert torch.autograd.gradcheck(lambda x, mask=mask: loss(record(x, 2, ids_TK), mask), logits_TE)


@every_loss
def test_precision(loss):
    for dtype, want in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        value = loss(record(logits(12, 5, dtype=dtype), 2))
        assert value.shape == ()
        assert value.dtype == want
    exact, single = (loss(record(logits(12, 5, dtype=d), 2)).item() for d in (torch.float64, torch.float32))
    assert single == pytest.approx(exact, rel=1e-5)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_padding_changes_neither_value_nor_gradient(data):
    loss = LOSSES[data.draw(st.sampled_from(sorted(LOSSES)))]
    E, T = 5, 12
    mask_T = torch.tensor(data.draw(st.lists(st.booleans(), min_size=T, max_size=T).filter(any)))
    real, seed = logits(T, E), data.draw(st.integers(1, 999))
    garbage = data.draw(st.sampled_from([1.0, 1e30, float("inf"), float("nan")]))
    other = torch.where(mask_T[:, None], real, logits(T, E, seed=seed) * garbage)
    ids_TK = real.topk(2).indices
    other_ids_TK = torch.where(mask_T[:, None], ids_TK, logits(T, E, seed=seed).topk(2).indices)
    values, gradients = [], []
    for x, ids in ((real, ids_TK), (other, other_ids_TK)):
        x = x.clone().requires_grad_()
        value = loss(record(x, 2, ids), mask_T.reshape(SEQUENCES))
        value.backward()
        values.append(value.detach())
        gradients.append(x.grad)
    assert values[0].isfinite()
    assert torch.equal(*values)
    assert torch.equal(*gradients)
    assert (gradients[0][~mask_T] == 0).all()
    assert (gradients[0][mask_T] != 0).any() or gradients[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["switch", "z"])
def test_a_masked_batch_is_the_batch_without_padding(name):
    r, mask_T = record(logits(12, 5), 2), torch.arange(12) % 3 > 0
    torch.testing.assert_close(LOSSES[name](r, mask_T), LOSSES[name](r.keep(mask_T)), rtol=0, atol=0)


@every_loss
def test_nothing_real_is_an_error(loss):
    r = record(logits(12, 5), 2)
    with pytest.raises(ValueError, match="all 12 padding"):
        loss(r, torch.zeros(SEQUENCES))


@pytest.mark.parametrize("function", [switch_loss, z_loss, sequence_loss])
def test_no_tokens_is_an_error(function):
    with pytest.raises(ValueError, match="at least one token"):
        function(record(logits(0, 5), 2, sequence_T=torch.zeros(0, dtype=torch.int64)))


@every_loss
@pytest.mark.parametrize(
    ("mask_T", "says"),
    [(torch.ones(11), "11 elements for 12"), (torch.zeros(12).fill_(-math.inf), "other values than 0 and 1")],
)
def test_bad_masks(loss, mask_T, says):
    with pytest.raises(ValueError, match=says):
        loss(record(logits(12, 5), 2), mask_T)


@pytest.mark.parametrize("function", [sequence_loss, z_loss])
def test_one_layer_at_a_time(function):
    with pytest.raises(ValueError, match="one Routing per layer, got tuple"):
        function((record(logits(12, 5), 2),))


@every_loss
def test_a_router_with_frozen_choices_gives_a_value_without_gradient(loss):
    r = StaticRouter(MoEConfig(d_model=3, d_expert=2, num_experts=5, top_k=2))(torch.zeros(12, 3))
    value = loss(r)
    assert value.isfinite()
    assert not value.requires_grad


# Switch and GShard


@pytest.mark.parametrize(("T", "E", "K"), SIZES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_switch_loss_and_gradient_equal_transformers(T, E, K, layers, masked):
    B = 2
    ours = [logits(B * T, E, seed=i, dtype=torch.float32).requires_grad_() for i in range(layers)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mask_BS = None
    if masked:
        mask_BS = torch.ones(B, T, dtype=torch.int64)
        mask_BS[0, : T // 2] = 0
        mask_BS[1, T - 1 :] = 0
    records = [record(x, K) for x in ours]
    got = switch_loss(records if layers > 1 else records[0], mask_BS, alpha=0.01)
    want = 0.01 * load_balancing_loss_func(tuple(theirs), E, K, mask_BS)
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
    assert E == 1 or ours[0].grad.abs().max() > 0


def test_switch_loss_equals_switch_transformers_for_one_group():
    logits_TE = logits(12, 5, dtype=torch.float32)
    r = record(logits_TE, 1)
    want = switch.load_balancing_loss_func(logits_TE.softmax(-1)[None], r.topk_ids_TK[None])
    torch.testing.assert_close(switch_loss(r), want)


@pytest.mark.parametrize("K", [1, 2, 4])
def test_even_and_collapsed(K):
    ids_TK = (torch.arange(8)[:, None] + torch.arange(K)) % 8
    assert switch_loss(record(torch.zeros(8, 8), K, ids_TK), alpha=0.5).item() == pytest.approx(0.5 * K)
    collapsed = StaticRouter(MoEConfig(d_model=3, d_expert=2, num_experts=8, top_k=K))(torch.zeros(9, 3))
    assert switch_loss(collapsed, alpha=0.5).item() == pytest.approx(0.5 * 8)


def test_switch_loss_is_exact_in_float64():
    """The loads are sevenths, which float32 would round."""
    r = record(logits(7, 3), 1)
    load_E = [r.topk_ids_TK.flatten().tolist().count(e) / 7 for e in range(3)]
    probability_E = r.logits_TE.softmax(-1).mean(0).tolist()
    want = 3 * sum(f * p for f, p in zip(load_E, probability_E, strict=True))
    assert switch_loss(r).item() == pytest.approx(want, rel=1e-13)


def test_layers_that_lean_opposite_ways_look_even_together():
    lean = torch.tensor([[9.0, 0.0]]).repeat(4, 1)
    one, other = record(lean, 1), record(-lean, 1)
    assert switch_loss([one, other]).item() == pytest.approx(1)
    assert (switch_loss(one) + switch_loss(other)).item() / 2 > 1.9


def test_counts_follow_the_choices_not_the_logits():
    """With a selection bias the two differ, and the load that was is what counts."""
    logits_TE = torch.tensor([[4.0, 0.0, 0.0]]).repeat(3, 1)
    spread = record(logits_TE, 1, torch.tensor([[0], [1], [2]]))
    assert switch_loss(spread).item() == pytest.approx(1)
    assert switch_loss(record(logits_TE, 1)).item() > 2.5


def test_layers_must_agree_on_experts():
    with pytest.raises(ValueError, match=r"\[4, 5\] experts"):
        switch_loss([record(logits(3, 5), 2), record(logits(3, 4), 2)])
    with pytest.raises(ValueError, match="empty"):
        switch_loss([])
    with pytest.raises(ValueError, match="got Tensor"):
        switch_loss([logits(3, 5)])


# DeepSeek


def slow_sequence_loss(r, sequences, real, alpha, score_fn):
    """Equations 17 to 20 of DeepSeek-V3, a number at a time."""
    score = {
        "sigmoid": lambda row: [1 / (1 + math.exp(-v)) for v in row],
        "softmax": lambda row: [math.exp(v) for v in row],
        "sqrtsoftplus": lambda row: [math.sqrt(math.log1p(math.exp(v))) for v in row],
    }[score_fn]
    E, K, losses = r.num_experts, r.top_k, []
    for name in dict.fromkeys(sequences):
        tokens = [t for t in range(r.num_tokens) if sequences[t] == name and real[t]]
        if not tokens:
            continue
        rows = [score(r.logits_TE[t].tolist()) for t in tokens]
        loss = 0.0
        for i in range(E):
            f = E / (K * len(tokens)) * sum(i in r.topk_ids_TK[t].tolist() for t in tokens)
            P = sum(row[i] / sum(row) for row in rows) / len(tokens)
            loss += f * P
        losses.append(alpha * loss)
    return sum(losses) / len(losses)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.data())
def test_sequence_loss_equals_the_formula(data):
    E = data.draw(st.integers(1, 6))
    K, T = data.draw(st.integers(1, E)), data.draw(st.integers(1, 12))
    sequences = data.draw(st.lists(st.sampled_from([-3, 0, 4, 9]), min_size=T, max_size=T))
    real = data.draw(st.lists(st.booleans(), min_size=T, max_size=T).filter(any))
    score_fn = data.draw(st.sampled_from(["sigmoid", "softmax", "sqrtsoftplus"]))
    seed = data.draw(st.integers(0, 999))
    r = record(logits(T, E, seed=seed), K, logits(T, E, seed=seed + 1).topk(K).indices)
    got = sequence_loss(r, torch.tensor(sequences), torch.tensor(real), alpha=0.3, score_fn=score_fn)
    assert got.item() == pytest.approx(slow_sequence_loss(r, sequences, real, 0.3, score_fn), rel=1e-9)


def test_sequences_come_from_the_record_unless_given():
    r = record(logits(12, 5), 2)
    labelled = dataclasses.replace(r, sequence_T=of_sequence())
    assert torch.equal(sequence_loss(labelled), sequence_loss(r, of_sequence()))
    together = torch.zeros(SEQUENCES, dtype=torch.int64)
    assert torch.equal(sequence_loss(labelled, together), sequence_loss(r, together))
    assert not torch.equal(sequence_loss(labelled, together), sequence_loss(labelled))


def test_a_batch_that_is_even_together_can_be_uneven_within_each_sequence():
    logits_TE = torch.tensor([[5.0, -5.0]] * 4 + [[-5.0, 5.0]] * 4)
    r = record(logits_TE, 1, sequence_T=torch.arange(8) // 4)
    assert sequence_loss(r, torch.zeros(8, dtype=torch.int64)).item() == pytest.approx(1)
    assert sequence_loss(r).item() > 1.9


def test_one_sequence_with_softmax_is_the_switch_loss_over_k():
    r = record(logits(12, 5), 2)
    one = sequence_loss(r, torch.zeros(12, dtype=torch.int64), score_fn="softmax")
    torch.testing.assert_close(one, switch_loss(r) / 2)


def test_scores_that_underflow_are_no_nan():
    x = torch.full((2, 3), -300.0).requires_grad_()
    value = sequence_loss(record(x, 1), torch.zeros(2, dtype=torch.int64))
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give sequence_T"),
        ({"sequence_T": torch.zeros(11, dtype=torch.int64)}, r"expected \(12,\)"),
        ({"sequence_T": torch.zeros(12)}, "int64"),
        ({"sequence_T": of_sequence(), "score_fn": "topk_softmax"}, "give 'softmax'"),
        ({"sequence_T": of_sequence(), "score_fn": "tanh"}, "choose one of"),
    ],
)
def test_bad_sequences(arguments, says):
    with pytest.raises(ValueError, match=says):
        sequence_loss(record(logits(12, 5), 2), **arguments)


# z


@pytest.mark.parametrize(("T", "E", "K"), SIZES)
def test_z_loss_and_gradient_equal_transformers(T, E, K):
    ours = logits(2 * T, E, dtype=torch.float32).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    got = z_loss(record(ours, K), coefficient=0.001)
    want = 0.001 * switch.router_z_loss_func(theirs.reshape(2, T, E))
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_z_loss_stays_finite_for_large_logits():
    x = torch.tensor([[1e4, -1e4], [0.0, -math.inf]], requires_grad=True)
    value = z_loss(record(x, 1))
    value.backward()
    assert value.item() == pytest.approx(1e8 / 2)
    assert x.grad.isfinite().all()
