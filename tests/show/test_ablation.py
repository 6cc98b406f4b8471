"""Expert ablation: effects are the metric's, heirs are counted by hand, and without any removal the logits speak."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from records import make

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.show.widgets import ablation as module
from labkit.show.widgets.ablation import Ablation, ablation
from labkit.show.widgets.ablation_tables import EVERYTHING
from labkit.show.widgets.base import VIEW_MIME


def without(record: Routing, expert: int, cost: float = 0.5) -> Routing:
    """The record as if an expert were gone: the next best is taken, and its tokens are predicted `cost` nats worse."""
    logits = record.logits_TE.clone()
    logits[:, expert] = float("-inf")
    scores, ids = logits.topk(record.top_k, dim=-1)
    mine = (record.topk_ids_TK == expert).any(1)
    routed = Routing.of(logits, ids, scores, layer=record.layer, tokens=record.tokens, domains=record.domains)
    return replace(routed, sequence_T=record.sequence_T, loss_T=record.loss_T + cost * mine)


def removals(records, experts=range(8), layer=0):
    return {e: tuple(without(r, e) if i == layer else r for i, r in enumerate(records)) for e in experts}


def test_effects_are_those_of_the_metric():
    records = make(T=800, sequence=20)
    removed = removals(records)
    w = ablation(records, removed)
    for e in (0, 5):
        w.expert = e
        known = metrics.ablation_effect(records, removed[e], rounds=200)
        assert w.effect[EVERYTHING].change == pytest.approx(known.change)
        assert (w.effect[EVERYTHING].low, w.effect[EVERYTHING].high) == (known.low, known.high)
        for g, domain in enumerate(known.domains):
            w.domain = domain
            triple = [known.change_G[g], known.low_G[g], known.high_G[g]]
            assert w.view["effects"][e] == pytest.approx([float(x) for x in triple], abs=1e-6)
            assert f"the loss of {domain} changes by +{w.effect[domain].change:.3g} nats" in w.view["note"]


def test_starts_on_the_expert_that_costs_most():
    records = make(T=400)
    removed = removals(records) | {3: tuple(without(r, 3, 9.0) if i == 0 else r for i, r in enumerate(records))}
    assert ablation(records, removed).expert == 3


@pytest.mark.parametrize("given", ["records", "logits"])
def test_heirs_are_who_its_tokens_went_to(given):
    records = make(T=300, L=1, K=3)
    w = ablation(records, removals(records) if given == "records" else None)
    w.expert = 2
    mine, taken = 0, dict.fromkeys(range(8), 0)
    for logits, before in zip(records[0].logits_TE.tolist(), records[0].topk_ids_TK.tolist(), strict=True):
        if 2 in before:
            mine += 1
            taken[max((e for e in range(8) if e not in before), key=lambda e: logits[e])] += 1
    assert w.heirs == pytest.approx({e: n / mine for e, n in taken.items() if n})
    assert list(w.heirs.values()) == sorted(w.heirs.values(), reverse=True)
    assert f"Of its {mine} tokens, expert {next(iter(w.heirs))}" in w.view["note"]
    assert sum(w.view["by_load"]) == pytest.approx(1, abs=1e-3)
    assert w.view["by_load"][2] == 0
    assert w.view["traced"] == (given == "records")


def test_load_alone_gives_the_baseline_of_the_heirs():
    record = Routing.of(torch.zeros(4, 4), torch.tensor([[0, 1], [0, 2], [3, 1], [3, 1]]), torch.ones(4, 2))
    w = ablation(record)
    w.expert = 0  # loads are 2, 3, 1, 2 of 8; its tokens have 1 and 2 already
    assert w.view["by_load"] == pytest.approx([0, 3 / 5 / 2, 1 / 3 / 2, (2 / 3 + 2 / 5) / 2], abs=1e-5)


def test_finds_the_layer_that_the_experts_were_removed_from():
    records = make(L=3)
    w = ablation(records, removals(records, layer=2))
    assert w.layer == "layer 2"
    assert w.view["load"] == pytest.approx(metrics.load(records[2]).tolist(), abs=1e-4)
    single = {e: r[2] for e, r in removals(records, layer=2).items()}
    assert ablation(records, single, layer=2).view == w.view


def test_the_worst_tokens_come_with_their_context():
    records = make(T=120, L=1, text="0123456789abcdefghijklmnopqrstuvwxyzABCD")
    rise = torch.zeros(120)
    rise[[45, 12, 119]] = torch.tensor([3.0, 1.0, 9.0])  # the last has no loss, since nothing follows it
    gone = without(records[0], 0, 0.0)
    w = ablation(records[0], {0: replace(gone, loss_T=records[0].loss_T + rise)})
    first, second = w.view["worst"]
    assert (first["position"], second["position"]) == (45, 12)
    assert (first["before"], first["token"], first["after"]) == ("01234", "5", "6789abc")  # its sequence begins at 40
    assert first["rise"] == pytest.approx(3.0)
    w.domain = "english"
    assert [one["position"] for one in w.view["worst"]] == [45]
    assert w.view["worst"][0]["domain"] == "english"


def test_an_effect_that_may_be_none_is_called_that():
    records = make(T=200, L=1)
    gone = without(records[0], 1, 0.0)
    w = ablation(records[0], {1: replace(gone, loss_T=records[0].loss_T + 0.1 * torch.randn(200).sign())})
    assert "leaves room for no change at all" in w.view["note"]
    one = make(T=30, L=1, domains=("code",))
    assert "no interval (a single sequence)" in ablation(one, removals(one)).view["note"]


def test_order_by_load_and_by_effect():
    records = make(T=400)
    w = ablation(records, removals(records, experts=(0, 3, 6)))
    w.sort = "load"
    loads = [w.view["load"][e] for e in w.view["order"]]
    assert loads == sorted(loads, reverse=True)
    w.sort = "effect"
    assert set(w.view["order"][:3]) == {0, 3, 6}
    changes = [w.view["effects"][e][0] for e in w.view["order"][:3]]
    assert changes == sorted(changes, reverse=True)
    assert "No record was given without 5 of the 8 experts" in w.sampled


def test_without_removals_it_says_what_is_not_known():
    w = ablation(make())
    assert w.effect == {}
    assert w.view["effects"] == [None] * 8
    assert w.view["worst"] == []
    assert "nothing is known about the loss" in w.sampled
    assert "no record without it" in w.view["note"]
    full = make(E=2, K=2)
    assert "Nobody is left" in ablation(full).view["note"]


def test_many_removals_are_sampled_in_whole_sequences_and_said(monkeypatch):
    monkeypatch.setattr(module, "TOKENS_AT_MOST", {True: 1600, False: 1600})
    records = make(T=800, L=1, sequence=20)
    w = ablation(records, removals(records))
    assert "over 200 of them, evenly spaced" in w.sampled
    assert w.effect[EVERYTHING].low is not None


@pytest.mark.parametrize(("T", "E", "K"), [(1, 2, 1), (300, 64, 6)])
@pytest.mark.parametrize("given", ["records", "logits"])
def test_picture_says_what_it_shows(T, E, K, given):
    records = make(T=T, E=E, K=K, L=1)
    known = T > 1 and given == "records"
    w = ablation(records, removals(records, range(E)) if known else None)
    data, meta = w._repr_mimebundle_()
    assert meta["image/png"]["alt"] == data["text/plain"]
    for words in (f"{E} experts", f"even {100 / E:.3g} %", "nats" if known else "logits"):
        assert words in data["text/plain"]
    assert data[VIEW_MIME]["model_id"] == w.model_id


def test_sends_tables_not_tokens():
    records = make(T=20_000, E=64, K=8, L=2, sequence=100)
    w = ablation(records, removals(records, (0, 1)))
    assert sum(len(json.dumps(v)) for k, v in w.get_state().items() if not k.startswith("_")) < 60_000


def test_script_is_whole_and_asks_nothing_of_the_network():
    source = str(Ablation._esm)
    assert source.count("export default { render }") == 1
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def blind(record: Routing) -> Routing:
    return replace(record, loss_T=None)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: ablation("records"), "give a Routing"),
        (lambda r: ablation(r, {0: r[0]}, layer=0), "expert 0 still takes .* tokens"),
        (lambda r: ablation(r, {0: r}), "in 0 of 2 layers the removed experts take no token.*give layer="),
        (lambda r: ablation(r, {8: without(r[0], 0)}, layer=0), "8 was removed; give numbers from 0 to 7"),
        (lambda r: ablation(r, {0: without(make(T=40)[0], 0)}, layer=0), "of other tokens"),
        (lambda r: ablation(r, {0: (without(r[0], 0),) * 3}, layer=0), "there are 3 layers, with it 2"),
        (lambda r: ablation(blind(r[0]), {0: without(r[0], 0)}), "needs loss_T"),
        (lambda r: ablation(r, layer=2), "layer is 2; give a position from 0 to 1"),
        (lambda r: setattr(ablation(r), "expert", 8), "give a number from 0 to 7"),
        (lambda r: setattr(ablation(r), "domain", "cats"), "give one of 'all tokens', 'code', 'english'"),
        (lambda r: setattr(ablation(r), "sort", "size"), "'number', 'load', 'effect'"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call(make())
