"""The dashboard reads what there is, and its panels stand in order; Grafana's files and the compose file agree."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from dashboard_reading import ANNOTATION, DASHBOARD, PANELS, QUERIES, VALUES, VARIABLES, filled
from deploy_names import MONITORING, named, of_the_fleet, of_the_server

UNITS = {"s", "short", "none", "percentunit", "reqps", "cps"}


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_query_reads_what_there_is(panel, query, legend):
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    recorded = {rule.get("record") for group in rules for rule in group["rules"]}
    assert named(query)
    assert named(filled(query)) <= of_the_server() | of_the_fleet() | recorded, panel
    assert legend


def test_everything_that_the_issue_asks_for_is_shown():
    shown = set().union(*(named(query) for _, query, _ in QUERIES))
    for part in (
        "time_to_first_token", "inter_token", "waiting", "running", "kv_usage", "preemptions", "generated_tokens",
        "expert_tokens", "errors", "labkit_ready", "restarts",
    ):  # fmt: skip
        assert any(part in name for name in shown), part
    assert any(panel["type"] == "heatmap" and "expert" in panel["targets"][0]["expr"] for panel in PANELS)
    assert any("version" in query for _, query, _ in QUERIES)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert [each["refId"] for each in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
    assert {json.dumps(each["datasource"]) for each in [panel, *panel["targets"]]} == {
        json.dumps({"type": "prometheus", "uid": "${datasource}"})}  # fmt: skip


def test_panels_stand_beside_each_other():
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
        cells = set(cells)
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {x for x, _ in taken} == set(range(24))
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "there is a hole between panels"


def test_every_variable_is_defined_and_used():
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert names == {*VARIABLES, "datasource"} == set(VALUES) - {"__rate_interval"}
    queries = " ".join([*(query for _, query, _ in QUERIES), ANNOTATION])
    assert all(f"${name}" in queries for name in VARIABLES)


def test_an_unknown_variable_is_noticed():
    with pytest.raises(ValueError, match="a variable is left"):
        filled("up{x='$unknown'}")
