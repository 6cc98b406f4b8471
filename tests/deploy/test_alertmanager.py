"""Alerts go to who should hear of them: amtool reads the routes, and each severity of the rules has one."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from deploy_names import MONITORING

CONFIG = MONITORING / "alertmanager.yml"
TOLD = yaml.safe_load(CONFIG.read_text("utf-8"))
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule["labels"]["severity"] for rule in RULES if "alert" in rule}


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["amtool", *arguments], capture_output=True, text=True)


@pytest.mark.prometheus
def test_the_configuration_is_well_formed():
    checked = amtool("check-config", str(CONFIG))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 inhibit rules" in checked.stdout
    assert "2 receivers" in checked.stdout


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("receiver", "labels"),
    [
        ("page", ["severity=page", "alertname=LabkitNoReadyReplica", "job=labkit-prod"]),
        ("ticket", ["severity=ticket", "alertname=LabkitQueueGrows", "job=labkit-prod"]),
        ("ticket", ["severity=unheard-of"]),
    ],
)
def test_a_severity_goes_to_its_receiver(receiver, labels):
    asked = ("config", "routes", "test", f"--config.file={CONFIG}")
    assert amtool(*asked, f"--verify.receivers={receiver}", *labels).returncode == 0
    other = {"page": "ticket", "ticket": "page"}[receiver]
    assert amtool(*asked, f"--verify.receivers={other}", *labels).returncode != 0


def test_every_severity_has_a_route_of_its_own():
    routed = {each["matchers"][0]: each["receiver"] for each in TOLD["route"]["routes"]}
    assert routed == {f'severity="{severity}"': severity for severity in set(ALERTS.values())}
    assert {each["name"] for each in TOLD["receivers"]} == set(routed.values()) | {TOLD["route"]["receiver"]}
    assert all(hook["send_resolved"] for each in TOLD["receivers"] for hook in each["webhook_configs"])


def test_what_inhibits_is_an_alert_and_a_job_at_a_time():
    for rule in TOLD["inhibit_rules"]:
        (source,) = rule["source_matchers"]
        assert source.partition("=")[2].strip('"') in ALERTS
        assert rule["equal"] == ["job"]
        assert ALERTS[source.partition("=")[2].strip('"')] == "page"
