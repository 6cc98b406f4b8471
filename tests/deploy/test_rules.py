"""The alerts fire when they should and only then, read what exists, and each is explained."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml
from deploy_names import FLEET_DOC, MONITORING, ROOT, named, of_the_fleet, of_the_server

from labkit.serve.fleet.hastened import hastened

RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
TESTS = ("rules_test.yml", "rules_slo_test.yml")


def promtool(*arguments: str) -> str:
    """What it says; it must be content."""
    ran = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.prometheus
def test_the_rules_are_well_formed():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "rules.yml")


@pytest.mark.prometheus
@pytest.mark.parametrize("name", TESTS)
def test_each_alert_fires_stays_silent_and_clears(name):
    promtool("test", "rules", name)


def test_every_alert_is_tested_to_fire():
    tests = [test for name in TESTS for test in yaml.safe_load((MONITORING / name).read_text())["tests"]]
    fired = {
        alert
        for test in tests
        for case in test["promql_expr_test"]
        for sample in case["exp_samples"]
        for alert in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == set(ALERTS)
    assert len(ALERTS) + len(RECORDED) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_what_there_is(rule):
    known = of_the_server() | of_the_fleet() | RECORDED
    read = named(rule["expr"])
    assert read or "up{" in rule["expr"]
    assert read <= known


def test_names_of_metrics_are_found_in_queries():
    assert named('a(job:labkit_x:p99_5m > 3 and rate(labkit_y_total{job="labkit-prod"}[5m]))') == {
        "job:labkit_x:p99_5m", "labkit_y_total"}  # fmt: skip


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_explained(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    assert rule["annotations"]["runbook_url"] == f"{repository}/blob/main/docs/fleet.md#{name.lower()}"
    entry = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", FLEET_DOC, re.MULTILINE | re.DOTALL)
    assert entry, "docs/fleet.md has no heading of this name"
    words = entry[1]
    assert words.startswith({"page": "**Page.**", "ticket": "**Ticket.**"}[rule["labels"]["severity"]])
    assert "- *Look at* " in words
    assert "- *Do*: " in words


def test_no_runbook_entry_is_left_over():
    assert set(re.findall(r"^### (Labkit\w+)", FLEET_DOC, re.MULTILINE)) == set(ALERTS)


def test_faster_rules_are_the_same_but_for_the_time():
    text = (MONITORING / "rules.yml").read_text("utf-8")
    faster = hastened(text, 60)
    assert "[5000ms]" in faster
    assert "for: 600000ms" not in faster
    assert not re.search(r"\[\d+[smhd]\]|for: \d+[smhd]$", faster, re.MULTILINE)
    same = re.sub(r"\d+(ms|[smhd])\b", "T", faster)
    assert same == re.sub(r"\d+(ms|[smhd])\b", "T", text)
    with pytest.raises(ValueError, match="factor is 0"):
        hastened(text, 0)
