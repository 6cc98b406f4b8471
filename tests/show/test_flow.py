"""The flow's kernel side: its counts are the record's, what it drops is what `core.capacity` drops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from records import large, make, payload

from labkit.core.capacity import expert_capacity, kept
from labkit.core.routing import Routing
from labkit.show.widgets.flow import Flow, flow
from labkit.show.widgets.flow_layout import Counts, place
from labkit.show.widgets.groups import groups

THREE = ("code", "english", "numbers")


def counted(r: Routing, names: list[str], label, seated=None) -> list[list[int]]:
    """Choices by group and expert, one at a time."""
    table = [[0] * r.num_experts for _ in names]
    for t, ids in enumerate(r.topk_ids_TK.tolist()):
        for k, e in enumerate(ids):
            if seated is None or seated[t][k]:
                table[names.index(label(t))][e] += 1
    return table


def test_counts_by_domain_are_the_records():
    records = make(T=500, L=2, domains=THREE)
    w = flow(records, layer=1)
    r = records[1]
    assert w.group_names == list(THREE)
    assert w.all_GE.tolist() == counted(r, w.group_names, lambda t: r.domains[t])
    assert w.kept_GE.tolist() == w.all_GE.tolist()
    assert w.drop_rate == 0
    w.layer = 0
    assert w.all_GE.sum(0).tolist() == records[0].tokens_per_expert_E.tolist()


@pytest.mark.parametrize("policy", ["position", "score"])
def test_drops_what_core_drops(policy):
    (r,) = make(T=500, L=1, domains=THREE)
    w = flow(r, capacity_factor=0.75, policy=policy)
    assert w.capacity == expert_capacity(500, 8, 2, 0.75) == 94
    seated_TK = kept(r, 94, policy)
    assert torch.equal(w.kept_TK, seated_TK)
    assert w.kept_GE.tolist() == counted(r, w.group_names, lambda t: r.domains[t], seated_TK.tolist())
    assert w.kept_GE.sum(0).max() == 94
    lost = 1000 - int(seated_TK.sum())
    assert w.drop_rate == pytest.approx(lost / 1000)
    assert f"{lost / 10:.3g} % of the choices are dropped" in w.view["note"]
    assert f"{100 * float((~seated_TK.any(1)).double().mean()):.3g} % of the tokens lose every choice" in w.view["note"]


def test_policy_and_factor_change_who_is_dropped_and_none_keeps_all():
    w = flow(make(T=500, L=1), capacity_factor=0.5)
    first = w.kept_TK
    w.policy = "score"
    assert not torch.equal(first, w.kept_TK)
    tight = w.drop_rate
    w.capacity_factor = 1.0
    assert 0 < w.drop_rate < tight
    w.capacity_factor = None
    assert (w.drop_rate, w.capacity) == (0, None)
    assert "nothing is dropped" in w.view["note"]


def test_groups_are_tokens_domains_or_blocks():
    few = groups(make(T=3, L=1)[0])
    assert len(few.names) == 3
    assert few.group_T.tolist() == [0, 1, 2]
    blocks = groups(make(T=100, L=1, domains=None)[0])
    assert blocks.names[:2] == ("0–11", "12–24")
    assert torch.bincount(blocks.group_T).tolist() == [12, 13, 12, 13, 12, 13, 12, 13]
    assert (blocks.group_T.diff() >= 0).all()
    assert "8 blocks" in blocks.said


def test_more_domains_than_have_room_are_one_group():
    domains = tuple(f"d{i:02}" for i in range(15))
    (r,) = make(T=610, L=1, sequence=10, domains=domains)
    g = groups(r)
    assert g.names == (*domains[:11], "4 other domains")
    assert g.said == "11 largest of 15 domains by name; the other 4 are one group."
    assert g.group_T.tolist() == [min(domains.index(name), 11) for name in r.domains]
    assert flow(r).sampled == g.said


def overlaps(spans: list[tuple[float, float]]) -> bool:
    spans = sorted(spans)
    return any(b[0] < a[1] - 3e-5 for a, b in pairwise(spans))


@pytest.mark.parametrize(("G", "E"), [(1, 1), (1, 2), (3, 8), (12, 64)])
def test_bands_are_as_wide_as_their_choices_and_never_overlap(G, E):
    draw = torch.Generator().manual_seed(G * E)
    all_GE = torch.randint(0, 9, (G, E), generator=draw) + (torch.arange(E) == 0).long()
    kept_GE = (all_GE * torch.rand(G, E, generator=draw)).long()
    view = place(Counts(all_GE, kept_GE))
    unit = view["unit"]
    assert sum(n for _, _, n, *_ in view["paths"]) == all_GE.sum()
    assert not overlaps([(left, left + n * unit) for _, _, n, _, left, _, _ in view["paths"]])
    right = [(at, at + k * unit) for _, _, _, k, _, at, _ in view["paths"]]
    right += [(at, at + (n - k) * unit) for _, _, n, k, _, _, at in view["paths"]]
    assert not overlaps(right)
    assert min(low for low, _ in right) > -1e-4
    assert max(high for _, high in right) < 1 + 1e-4
    for g, e, n, k, left, at, lost in view["paths"]:
        assert (n, k) == (all_GE[g, e], kept_GE[g, e])
        (top_left, of_g, _), (top_right, of_e, kept_e) = view["left"][g], view["right"][e]
        assert top_left - 3e-5 <= left <= top_left + of_g * unit + 3e-5
        assert top_right - 3e-5 <= at <= top_right + kept_e * unit + 3e-5
        assert top_right + kept_e * unit - 3e-5 <= lost <= top_right + of_e * unit + 3e-5


def test_a_path_in_hand_is_put_into_words():
    (r,) = make(T=500, L=1, domains=THREE)
    w = flow(r, capacity_factor=0.75)
    w.path = (1, 4)
    n, lost = int(w.all_GE[1, 4]), int((w.all_GE - w.kept_GE)[1, 4])
    assert w.detail.startswith(f"“english” → expert 4: {n:,} tokens, {100 * n / int(w.all_GE[1].sum()):.3g} %")
    assert f"{lost} of them are dropped" in w.detail
    mine = [r.tokens[t] for t in range(500) if r.domains[t] == "english" and 4 in r.topk_ids_TK[t]]
    top = max(set(mine), key=mine.count)
    assert f" {mine.count(top)}×" in w.detail
    w.path = (-1, -1)
    assert w.detail == ""


def test_one_place_is_one_place():
    note = flow(make(T=1, E=8, K=2), capacity_factor=1.0).view["note"]
    assert "each expert has 1 place (capacity factor 1)" in note


def test_a_value_out_of_range_from_the_browser_changes_nothing():
    w = flow(make(T=50), capacity_factor=1.0)
    view = w.view
    for wrong in ({"capacity_factor": 9.0}, {"path": [0, 8]}, {"policy": "luck"}, {"layer": -1}):
        with pytest.raises(ValueError, match=r"give |choose "):
            w.set_state(wrong)
    assert (w.capacity_factor, w.path, w.policy, w.layer, w.view) == (1.0, (-1, -1), "position", 0, view)


def test_the_largest_record_sends_little():
    w = flow(large())
    w.capacity_factor = 1.0
    w.path = (0, 1)
    assert payload(w) < 100_000
    assert w.view["tokens"] == 100_000


@pytest.mark.parametrize(
    ("records", "state"),
    [
        (make(T=300, domains=THREE), {"capacity_factor": 0.8, "path": (1, 2), "layer": 1}),
        (make(T=1, E=2, K=1, L=1), {}),
        (make(T=9, E=4, text="猫$_^\n"), {"path": (0, 0)}),
        (make(T=300, E=64, K=8, L=1, domains=None), {"path": (3, 20)}),
    ],
)
def test_picture_says_what_it_shows(records, state):
    w = flow(records)
    for name, value in state.items():
        setattr(w, name, value)
    data, meta = w._repr_mimebundle_()
    assert "image/png" in data
    alt = meta["image/png"]["alt"]
    assert w.view["note"] in alt
    assert w.detail in alt


def test_script_asks_nothing_of_the_network():
    source = str(Flow._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: flow(["text"]), "flow got str"),
        (lambda: flow(make(T=5), layer=2), "layer is 2; give 0 to 1"),
        (lambda: flow(make(T=5), capacity_factor=0.0), "0.25 to 4, or None"),
        (lambda: flow(make(T=5), capacity_factor=float("nan")), "0.25 to 4, or None"),
        (lambda: flow(make(T=5), policy="luck"), "one of position, score"),
        (lambda: setattr(flow(make(T=5)), "path", (5, 0)), "group is 5; give 0 to 4"),
        (lambda: setattr(flow(make(T=5)), "path", (0, -1)), "expert is -1; give 0 to 7"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
