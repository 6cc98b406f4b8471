"""The routing record holds only what fits together."""

import pytest
import torch

from labkit.core.routing import Routing

LOGITS = torch.zeros(3, 4)
IDS = torch.tensor([[0, 1], [1, 2], [3, 0]])
SCORES = torch.full((3, 2), 0.5)
COUNTS = torch.tensor([2, 2, 1, 1])


def test_of_counts_tokens() -> None:
    r = Routing.of(LOGITS, IDS, SCORES, layer=1, domains=("a", "b", "a"))
    assert torch.equal(r.tokens_per_expert_E, COUNTS)
    assert (r.num_tokens, r.num_experts, r.top_k, r.layer) == (3, 4, 2, 1)


def test_no_tokens_is_a_routing() -> None:
    r = Routing.of(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    assert r.tokens_per_expert_E.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"logits_TE": torch.zeros(3, 1, 4)}, "flatten"),
        ({"topk_ids_TK": IDS[:2]}, r"expected \(3, K\)"),
        ({"topk_ids_TK": IDS[0]}, r"expected \(3, K\)"),
        ({"topk_scores_TK": SCORES[:, :1]}, "topk_scores_TK has shape"),
        ({"topk_ids_TK": IDS.int()}, "int64"),
        ({"logits_TE": LOGITS.long()}, "floating point"),
        ({"topk_scores_TK": SCORES.long()}, "floating point"),
        ({"tokens_per_expert_E": COUNTS[:3]}, r"expected \(4,\)"),
        ({"topk_ids_TK": torch.tensor([[0, 4], [1, 2], [3, 0]])}, r"\[0, 4\)"),
        ({"topk_ids_TK": torch.tensor([[0, -1], [1, 2], [3, 0]])}, r"\[0, 4\)"),
        ({"topk_ids_TK": torch.tensor([[0, 0], [1, 2], [3, 0]])}, "twice"),
        ({"tokens_per_expert_E": torch.tensor([2, 2, 2, 0])}, "does not count"),
        ({"tokens": ("a",)}, "1 labels for 3"),
        ({"domains": ("a",) * 4}, "4 labels for 3"),
    ],
)
def test_a_wrong_record_says_what_is_wrong(bad: dict, says: str) -> None:
    good = {"logits_TE": LOGITS, "topk_ids_TK": IDS, "topk_scores_TK": SCORES, "tokens_per_expert_E": COUNTS}
    Routing(**good)
    with pytest.raises(ValueError, match=says):
        Routing(**{**good, **bad})


@pytest.mark.parametrize(
    ("logits", "ids", "says"),
    [
        (torch.zeros(4), IDS, "flatten"),
        (LOGITS, IDS.int(), "int64"),
        (LOGITS, IDS + 2, r"\[0, 4\)"),
    ],
)
def test_of_checks_before_it_counts(logits: torch.Tensor, ids: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Routing.of(logits, ids, SCORES)


def test_detach_drops_gradients_and_keeps_names() -> None:
    r = Routing.of(LOGITS.clone().requires_grad_(), IDS, SCORES.clone().requires_grad_(), layer=2, tokens=("x",) * 3)
    d = r.detach()
    assert not d.logits_TE.requires_grad
    assert not d.topk_scores_TK.requires_grad
    assert (d.layer, d.tokens) == (2, ("x",) * 3)


LABELLED = {"layer": 2, "tokens": ("x", "y", "z"), "domains": ("a", "b", "a"),
            "sequence_T": torch.tensor([0, 0, 1]), "loss_T": torch.tensor([1.0, float("nan"), 3.0])}  # fmt: skip


def test_keep_leaves_out_padding_and_counts_anew() -> None:
    r = Routing.of(LOGITS + torch.arange(3.0)[:, None], IDS, SCORES, **LABELLED)
    for mask in (torch.tensor([1, 0, 1]), torch.tensor([[True], [False], [True]])):
        k = r.keep(mask)
        assert k.tokens_per_expert_E.tolist() == [2, 1, 0, 1]
        assert (k.layer, k.tokens, k.domains) == (2, ("x", "z"), ("a", "a"))
        assert (k.sequence_T.tolist(), k.loss_T.tolist(), k.logits_TE[:, 0].tolist()) == ([0, 1], [1, 3], [0, 2])
    assert r.keep(torch.zeros(3)).num_tokens == 0
    with pytest.raises(ValueError, match="2 elements for 3 tokens"):
        r.keep(torch.ones(2))
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        r.keep(torch.tensor([0.0, float("-inf"), 0.0]))


def test_keep_lets_gradients_through_to_the_kept_only() -> None:
    logits = LOGITS.clone().requires_grad_()
    Routing.of(logits, IDS, SCORES).keep(torch.tensor([1, 0, 1])).logits_TE.sum().backward()
    assert logits.grad[:, 0].tolist() == [1, 0, 1]


def test_detach_keeps_every_field() -> None:
    d = Routing.of(LOGITS.clone().requires_grad_(), IDS, SCORES, **LABELLED).detach()
    assert {name: getattr(d, name) for name in ("layer", "tokens", "domains")} == {
        name: LABELLED[name] for name in ("layer", "tokens", "domains")
    }
    assert torch.equal(d.sequence_T, LABELLED["sequence_T"])
    assert torch.equal(d.loss_T.nan_to_num(), LABELLED["loss_T"].nan_to_num())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"sequence_T": torch.zeros(2, dtype=torch.int64)}, r"sequence_T has shape \(2,\); expected \(3,\)"),
        ({"sequence_T": torch.zeros(3)}, "sequence_T has dtype"),
        ({"loss_T": torch.zeros(3, 1)}, "loss_T has shape"),
        ({"loss_T": torch.zeros(3, dtype=torch.int64)}, "loss_T has dtype"),
    ],
)
def test_labels_of_another_size_or_kind_are_refused(bad: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Routing.of(LOGITS, IDS, SCORES, **bad)
