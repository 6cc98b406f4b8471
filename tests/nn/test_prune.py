"""A pruned model is the whole one with those experts masked in its routers."""

from __future__ import annotations

import pytest
import small_models
import torch
from small_models import KINDS, E, batch, build

from labkit.core.cost import model_params
from labkit.core.routing import Routing
from labkit.nn import Transformer, trace
from labkit.nn.prune import keep_most_used, most_used, prune, prune_by_use, use


@pytest.mark.parametrize("dense", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_model_with_those_experts_masked(kind, dense):
    model = build(kind, dense=dense)
    keep = {0: (0, 2, 5), 1: (1, 2, 3), 2: (0, 4, 5)}
    keep = {layer: some for layer, some in keep.items() if layer >= dense}
    gone = [(layer, e) for layer, some in keep.items() for e in range(E) if e not in some]
    small = prune(model, keep)
    masked, pruned = trace(model, batch(), ablate=gone), trace(small, batch())
    torch.testing.assert_close(pruned[0].loss_T, masked[0].loss_T, equal_nan=True, atol=1e-6, rtol=1e-6)
    whole = trace(model, batch())
    assert not torch.allclose(whole[0].loss_T.nan_to_num(), pruned[0].loss_T.nan_to_num(), atol=1e-4)
    for m, p in zip(masked, pruned, strict=True):
        names = torch.tensor(keep[m.layer])
        assert torch.equal(names[p.topk_ids_TK], m.topk_ids_TK)
        torch.testing.assert_close(p.topk_scores_TK, m.topk_scores_TK, atol=1e-6, rtol=1e-6)
    assert sum(p.numel() for p in small.parameters()) == model_params(small.config).total


def test_keeping_all_changes_nothing_and_shares_no_memory():
    model = build()
    same = prune(model, dict.fromkeys(range(3), range(E)))
    ids_BS = batch().ids_BS
    torch.testing.assert_close(same(ids_BS).logits, model(ids_BS).logits, rtol=0, atol=0)
    assert same.head.weight is same.embed.weight
    before = model(ids_BS).logits
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.zero_()
    assert torch.equal(model(ids_BS).logits, before)


def test_another_order_of_experts_is_the_same_model():
    model = build("sigmoid, selection bias, shared", tie=False)
    turned = prune(model, {0: (5, 4, 3, 2, 1, 0), 1: (1, 0, 3, 2, 5, 4), 2: range(E)})
    ids_BS = batch().ids_BS
    torch.testing.assert_close(turned(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)


def test_by_use_keeps_the_busiest_and_lowers_top_k():
    model = build()
    records = trace(model, batch(16))
    small = prune_by_use(model, records, 2, top_k=1)
    assert (small.config.moe.num_experts, small.config.moe.top_k) == (2, 1)
    for record in records:
        kept = keep_most_used([record], 2)[record.layer]
        assert min(record.tokens_per_expert_E[list(kept)]) >= sorted(record.tokens_per_expert_E)[-2]
        rows = small.layers[record.layer].ffn.router.weight_ED
        assert torch.equal(rows, model.layers[record.layer].ffn.router.weight_ED[list(kept)])
    assert small(batch().ids_BS).logits.isfinite().all()


def test_use_by_scores_weighs_what_tokens_only_counts():
    ids, scores = torch.tensor([[0, 1], [0, 2], [0, 1]]), torch.tensor([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    record = Routing.of(torch.zeros(3, 4), ids, scores)
    assert most_used(use(record), 1) == (0,)
    assert most_used(use(record, "scores"), 1) == (1,)
    torch.testing.assert_close(use(record, "scores"), torch.tensor([0.1, 0.6, 0.3, 0.0], dtype=torch.float64))


def test_a_pruned_model_is_saved_and_read_again(tmp_path):
    small = prune(build(), dict.fromkeys(range(3), (0, 1, 4)))
    again = Transformer.from_pretrained(small.save_pretrained(tmp_path / "small"))
    ids_BS = batch().ids_BS
    torch.testing.assert_close(again(ids_BS).logits, small(ids_BS).logits)


def test_a_pruned_model_can_be_trained():
    small = prune(build(), dict.fromkeys(range(3), (0, 1, 4))).train()
    small(batch().ids_BS, labels=batch().ids_BS).loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_what_does_not_fit_is_refused():
    model = build()
    whole = dict.fromkeys(range(3), (0, 1, 2))
    for keep, told in (
        ({0: (0, 1)}, r"keep names layers \[0\]"),
        ({**whole, 1: (0, 1)}, r"\[2, 3\] experts in different layers"),
        ({**whole, 1: (0, 1, 1)}, "different experts"),
        ({**whole, 1: (0, 1, 6)}, "from 0 to 5"),
        (dict.fromkeys(range(3), (0,)), "lower top_k"),
    ):
        with pytest.raises(ValueError, match=told):
            prune(model, keep)
    records = trace(model, batch())
    with pytest.raises(ValueError, match="no record"):
        prune_by_use(model, records[:2], 3)
    with pytest.raises(ValueError, match="comes twice"):
        prune_by_use(model, [*records, records[0]], 3)
    with pytest.raises(ValueError, match="number is 7"):
        prune_by_use(model, records, 7)
    with pytest.raises(ValueError, match="by is 'luck'"):
        prune_by_use(model, records, 3, by="luck")
    with pytest.raises(ValueError, match="in 2 groups"):
        prune(build(num_groups=2, top_groups=1), whole)
    with pytest.raises(ValueError, match="takes a Transformer"):
        prune(small_models.nn.Linear(2, 2), whole)
