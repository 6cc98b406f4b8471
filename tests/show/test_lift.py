"""Domain lift: the numbers are those of a plain count, a brush asks about a set, and chance is what shuffling gives."""

from __future__ import annotations

import pytest
import torch
from records import make, payload

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.lift import LiftMap, lift_map


def share_by_hand(record: Routing, experts: list[int], labels: list[str], domain: str) -> float:
    """The share of a domain's choices that fall on these experts, counted one by one."""
    taken = total = 0
    for ids, label in zip(record.topk_ids_TK.tolist(), labels, strict=True):
        if label == domain:
            taken += sum(e in experts for e in ids)
            total += len(ids)
    return taken / total


def test_shows_the_layer_that_is_looked_at():
    records = make(T=800, L=3)
    w = lift_map(records, layer=1)
    for layer in (1, 2):
        w.layer = layer
        table, chance = metrics.lift_by_domain(records[layer]), metrics.permuted_lift(records[layer])
        torch.testing.assert_close(torch.tensor(w.view["lift"]), table.lift_GE, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.tensor(w.view["low"]), chance.low_GE, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.tensor(w.view["high"]), chance.high_GE, atol=1e-4, rtol=0)
        assert torch.equal(torch.tensor(w.view["outside"]).bool(), chance.exceeded_by(table))
        assert w.view["note"].startswith(f"layer {layer}, code: {int(chance.exceeded_by(table)[0].sum())} of 8 experts")
    assert "whole sequences" in w.sampled
    assert "all 800 tokens" in w.sampled


def test_a_layer_is_computed_when_it_is_first_looked_at_and_once(monkeypatch):
    seen = []
    monkeypatch.setattr("labkit.show.widgets.lift.layer_table", lambda r: seen.append(r.layer) or made[r.layer])
    records = make(L=3)
    from labkit.show.widgets.lift_tables import layer_table

    made = {r.layer: layer_table(r) for r in records}
    w = lift_map(records)
    w.layer, w.domain, w.sort = 2, "english", "lift"
    w.layer = 0
    assert seen == [0, 2]


@pytest.mark.parametrize("sequences", [True, False])
def test_brush_asks_about_the_set_as_a_whole(sequences):
    (record,) = make(T=600, L=1, sequence=20)
    if not sequences:
        record = Routing.of(record.logits_TE, record.topk_ids_TK, record.topk_scores_TK, domains=record.domains)
    w, brush = lift_map(record), [1, 2, 6]
    w.brush = brush
    draw, unit = torch.Generator().manual_seed(1), 20 if sequences else 1
    labels = torch.tensor([d == "code" for d in record.domains]).view(-1, unit)[:, 0]
    by_chance = []
    for _ in range(300):
        shuffled = labels[torch.randperm(len(labels), generator=draw)].repeat_interleave(unit).tolist()
        by_chance.append(share_by_hand(record, brush, ["code" if s else "english" for s in shuffled], "code"))
    low, high = torch.quantile(torch.tensor(by_chance), torch.tensor([0.025, 0.975])).tolist()
    for domain, mine in w.brushed.items():
        assert mine.share == pytest.approx(share_by_hand(record, brush, list(record.domains), domain), abs=1e-6)
        overall = share_by_hand(record, brush, ["x"] * 600, "x")
        assert mine.lift == pytest.approx(mine.share / overall, rel=1e-5)
    assert w.brushed["code"].low == pytest.approx(low, abs=0.15 * (high - low))
    assert w.brushed["code"].high == pytest.approx(high, abs=0.15 * (high - low))
    assert w.view["note"].startswith(f"{w.layers[0]}, experts 1, 2 and 6 take {100 * w.brushed['code'].share:.1f} %")
    w.brush = []
    assert w.brushed == {} == w.view["brushed"]


def test_examples_are_tokens_that_chose_the_brushed_experts():
    ids = torch.tensor([[0], [0], [0], [1], [0]])
    record = Routing.of(
        torch.zeros(5, 2),
        ids,
        torch.ones(5, 1),
        tokens=("\n", "def", "\n", "x", " the"),
        domains=("code",) * 4 + ("en",),
    )
    w = lift_map(record)
    w.brush = [0]
    assert w.view["note"].endswith("Tokens of code there: “⏎” (2), “def” (1).")
    w.domain = "en"
    assert w.view["note"].endswith("Tokens of en there: “␣the” (1).")


def test_order_follows_the_domain():
    w = lift_map(make(T=800))
    assert w.view["order"] == list(range(8))
    w.sort = "lift"
    for g, domain in enumerate(w.domains):
        w.domain = domain
        values = [w.view["lift"][g][e] for e in w.view["order"]]
        assert values == sorted(values, reverse=True)


def test_random_routing_is_what_chance_gives():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 8, generator=draw)
    scores, ids = logits.topk(2)
    record = Routing.of(logits, ids, scores, domains=("a", "b", "c") * 1000)
    w = lift_map(record)
    assert sum(map(sum, w.view["outside"])) <= 5
    assert "0 stand out even among all 24 cells" in w.view["note"]
    w.brush = [0, 1, 2, 3]
    assert not any(mine.outside for mine in w.brushed.values())
    assert "what chance gives" in w.view["note"]


@pytest.mark.parametrize("sort", ["number", "lift"])
@pytest.mark.parametrize(("T", "E", "K"), [(1, 2, 1), (300, 64, 6)])
def test_picture_says_what_it_shows(T, E, K, sort):
    w = lift_map(make(T=T, E=E, K=K))
    w.sort, w.brush = sort, [1]
    data, meta = w._repr_mimebundle_()
    assert meta["image/png"]["alt"] == data["text/plain"]
    for words in (f"{E} experts", "shuffled labels", "layer 0, expert 1 takes", "%"):
        assert words in data["text/plain"]
    assert data[VIEW_MIME]["model_id"] == w.model_id


def test_one_domain_is_compared_with_nothing():
    w = lift_map(make(T=1, E=4, domains=("english",)))
    assert w.view["note"].startswith("layer 0: every token is of english, so there is nothing to compare")
    assert "Counted over the one token;" in w.sampled


def test_sends_tables_not_tokens():
    w = lift_map(make(T=20_000, E=64, K=8, L=16, domains=("code", "english", "numbers", "d"), sequence=100))
    w.brush = list(range(64))
    assert payload(w) < 60_000
    assert len(w._tables) == 1


def test_script_is_whole_and_asks_nothing_of_the_network():
    source = str(LiftMap._esm)
    assert source.count("export default { render }") == 1
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def other_domains():
    return make()[0], make(domains=("x", "y"))[1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: lift_map("records"), "give a Routing"),
        (lambda: lift_map(make(domains=None)), "lift_map needs the domain of each token.*trace a labelled batch"),
        (lambda: lift_map(other_domains()), "different domains"),
        (lambda: lift_map(make(), layer=2), "layer is 2; give a position from 0 to 1"),
        (lambda: setattr(lift_map(make()), "layer", -1), "give a position from 0 to 1"),
        (lambda: setattr(lift_map(make()), "domain", "cats"), "'cats'; give one of 'code', 'english'"),
        (lambda: setattr(lift_map(make()), "sort", "size"), "'number', 'lift'"),
        (lambda: setattr(lift_map(make()), "brush", [8]), "from 0 to 7"),
        (lambda: setattr(lift_map(make()), "brush", [1, 1]), "different expert numbers"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
