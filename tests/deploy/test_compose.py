"""The compose file, the image and the configurations agree: hosts, ports, folders, commands."""

from __future__ import annotations

import json
import re
import runpy
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import yaml
from deploy_names import MONITORING, ROOT
from manifests import command_faults

COMPOSE = yaml.safe_load((MONITORING / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
LISTENS = {"fleet": 8000, "prometheus": 9090, "alertmanager": 9093, "pager": 9095, "grafana": 3000}


def config(name: str) -> dict:
    return yaml.safe_load((MONITORING / name).read_text("utf-8"))


def mounts(service: str) -> dict[str, str]:
    """Where a service sees what: its path inside, to the one outside."""
    parts = [volume.split(":") for volume in SERVICES[service].get("volumes", ())]
    return {inside: outside for outside, inside, *_ in parts}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_what_it_names(name):
    service = SERVICES[name]
    assert set(service) <= {
        "build", "image", "command", "entrypoint", "ports", "expose", "environment", "volumes", "read_only", "tmpfs",
        "cap_drop", "security_opt", "stop_grace_period", "restart", "depends_on", "shm_size",
    }  # fmt: skip
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    for outside in mounts(name).values():
        assert (MONITORING / outside).exists() if outside.startswith(".") else outside in COMPOSE["volumes"], outside
    if service["image"] != "labkit":
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
    for port in service.get("ports", ()):
        assert port == f"127.0.0.1:{LISTENS[name]}:{LISTENS[name]}", "only this machine is let in"


def test_every_volume_is_used():
    used = {outside for name in SERVICES for outside in mounts(name).values() if not outside.startswith(".")}
    assert used == set(COMPOSE["volumes"])


def test_configurations_name_services_and_their_ports():
    prometheus, alertmanager = config("prometheus.yml"), config("alertmanager.yml")
    named = [urlsplit(found["url"]).netloc for each in prometheus["scrape_configs"]
             for found in each.get("http_sd_configs", ())]  # fmt: skip
    static = [*prometheus["alerting"]["alertmanagers"], *prometheus["scrape_configs"]]
    named += [target for each in static for one in each.get("static_configs", ()) for target in one["targets"]]
    named += [urlsplit(hook["url"]).netloc for each in alertmanager["receivers"] for hook in each["webhook_configs"]]
    named += [urlsplit(each["url"]).netloc for each in config(DATASOURCES)["datasources"]]
    places = {*(f"{name}:{port}" for name, port in LISTENS.items()), "localhost:9090"}
    assert len(named) == 7
    assert set(named) <= places


DATASOURCES, BOARDS = "grafana/provisioning/datasources/prometheus.yml", "grafana/provisioning/dashboards/labkit.yml"


def test_rules_and_dashboards_lie_where_they_are_looked_for():
    assert config("prometheus.yml")["rule_files"] == ["rules.yml"]
    assert {"/etc/prometheus/prometheus.yml", "/etc/prometheus/rules.yml"} <= set(mounts("prometheus"))
    (provider,) = config(BOARDS)["providers"]
    inside = f"{provider['options']['path']}/dashboard.json"
    assert mounts("grafana")[inside] == "./grafana/dashboard.json"
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == inside
    assert mounts("grafana")["/etc/grafana/provisioning"] == "./grafana/provisioning"
    board = json.loads((MONITORING / "grafana" / "dashboard.json").read_text("utf-8"))
    (source,) = config(DATASOURCES)["datasources"]
    chosen = next(each for each in board["templating"]["list"] if each["type"] == "datasource")
    assert (chosen["query"], chosen["current"]["value"]) == (source["type"], source["uid"])


def test_the_server_is_built_from_here_and_takes_its_options():
    fleet = SERVICES["fleet"]
    assert (MONITORING / fleet["build"]["context"]).resolve() == ROOT
    image = (ROOT / fleet["build"]["dockerfile"]).read_text("utf-8")
    assert 'ENTRYPOINT ["labkit"]' in image
    assert list(command_faults("labkit " + " ".join(fleet["command"]), {8000})) == []
    assert (fleet["read_only"], fleet["cap_drop"]) == (True, ["ALL"])
    assert fleet["stop_grace_period"] == "45s", "longer than the default of --drain-seconds and the last writes"
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", image, re.MULTILINE))
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8")
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}\n" in ignored


def test_the_image_serves_as_it_says():
    image = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    (words,) = re.findall(r"^CMD (\[.+\])$", image, re.MULTILINE)
    assert list(command_faults("labkit " + " ".join(json.loads(words)), {8000})) == []
    assert "http://127.0.0.1:8000/health" in image
    assert re.search(r"^USER 10001:10001$", image, re.MULTILINE)


def test_the_pager_prints_what_it_is_told(capsys):
    server = ThreadingHTTPServer(("127.0.0.1", 0), runpy.run_path(str(MONITORING / "pager.py"))["Pager"])
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    alert = {"status": "firing", "annotations": {"summary": "No replica is ready"}}
    url = f"http://127.0.0.1:{server.server_address[1]}/page"
    request = urllib.request.Request(url, data=json.dumps({"alerts": [alert]}).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    thread.join()
    server.server_close()
    assert "/page firing No replica is ready" in capsys.readouterr().out
