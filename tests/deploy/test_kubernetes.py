"""The manifests are well-formed, and hold together among themselves and with the program. CRDs have no schema here."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from deploy_names import MONITORING, ROOT
from manifests import FOLDER, commands, faults, read, sources

CRDS = {"PodMonitor", "PrometheusRule", "RayService", "Kustomization"}
OVERLAYS = ("prod", "canary")
needs_kustomize = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on this machine")


def built(overlay: str) -> list[dict]:
    """What kustomize makes of a folder."""
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def of(kind: str, manifests: list[dict]) -> dict:
    """The only one of its kind."""
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


FILES = [path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_manifest_follows_kubernetes_schema(path):
    for manifest in read(path):
        if manifest["kind"] not in CRDS:
            kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_schema_is_strict():
    service = of("Service", read(FOLDER / "base"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "port": 80}}, "1.31", strict=True)


def test_the_base_holds_together():
    assert faults(read(FOLDER / "base")) == []


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_is_valid_and_holds_together(overlay):
    made = built(overlay)
    for manifest in made:
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    assert faults(made) == []
    pod = of("Deployment", made)["spec"]["template"]
    assert pod["metadata"]["labels"]["labkit/alias"] == overlay
    assert of("ConfigMap", made)["data"]["LABKIT_MODEL"] == f"four-domains@{overlay}"
    assert re.fullmatch(r"registry\.example\.org/labkit:\d+\.\d+\.\d+", pod["spec"]["containers"][0]["image"])
    assert {each["metadata"]["namespace"] for each in made} == {"labkit"}
    assert of("Service", made)["spec"]["selector"]["labkit/alias"] == overlay


@needs_kustomize
def test_the_canary_is_one_replica_and_prod_grows():
    canary, prod = built("canary"), built("prod")
    assert of("Deployment", canary)["spec"]["replicas"] == 1
    assert "HorizontalPodAutoscaler" not in {each["kind"] for each in canary}
    assert "replicas" not in of("Deployment", prod)["spec"]
    assert of("HorizontalPodAutoscaler", prod)["spec"]["minReplicas"] == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_what_there_is(overlay):
    (told,) = read(FOLDER / overlay / "kustomization.yaml")
    base = read(FOLDER / overlay / told["resources"][0])
    there = {(each["kind"], each["metadata"]["name"]) for each in base}
    images = {each["image"].split(":")[0] for each in of("Deployment", base)["spec"]["template"]["spec"]["containers"]}
    assert all((patch["target"]["kind"], patch["target"]["name"]) in there for patch in told["patches"])
    assert all(("Deployment", each["name"]) in there for each in told.get("replicas", ()))
    assert {each["name"] for each in told["images"]} == images
    for made in told["configMapGenerator"]:
        known = of("ConfigMap", base)["data"]
        assert ("ConfigMap", made["name"]) in there
        assert {literal.split("=")[0] for literal in made["literals"]} <= set(known)


def container(manifests):
    return of("Deployment", manifests)["spec"]["template"]["spec"]["containers"][0]


def pod(manifests):
    return of("Deployment", manifests)["spec"]["template"]["spec"]


MUTATIONS = {
    "a label is dropped": (
        lambda all: of("Deployment", all)["spec"]["template"]["metadata"]["labels"].pop("app.kubernetes.io/component"),
        "Service labkit selects",
    ),
    "a budget for others": (
        lambda all: of("PodDisruptionBudget", all)["spec"]["selector"].update(matchLabels={"app": "labkit"}),
        "PodDisruptionBudget labkit selects",
    ),
    "a secret is renamed": (
        lambda all: container(all)["env"][0]["valueFrom"]["secretKeyRef"].update(name="labkit-key"),
        "there is no secret labkit-key",
    ),
    "a key of a secret is renamed": (
        lambda all: container(all)["env"][1]["valueFrom"]["secretKeyRef"].update(key="user"),
        "there is no secret labkit-store with user",
    ),
    "a secret stands in the manifest": (
        lambda all: container(all)["env"].__setitem__(0, {"name": "LABKIT_API_KEYS", "value": "1234"}),
        "LABKIT_API_KEYS stands in the manifest",
    ),
    "the ConfigMap is renamed": (
        lambda all: container(all)["envFrom"][0]["configMapRef"].update(name="other"),
        "there is no ConfigMap other",
    ),
    "the account is gone": (lambda all: all.remove(of("ServiceAccount", all)), "there is no ServiceAccount labkit"),
    "a port is renamed": (lambda all: container(all)["ports"][0].update(name="web"), "names port http"),
    "a probe asks elsewhere": (
        lambda all: container(all)["readinessProbe"]["httpGet"].update(path="/readyz"),
        "readinessProbe asks",
    ),
    "no liveness": (lambda all: container(all).pop("livenessProbe"), "livenessProbe asks"),
    "an option is misspelt": (
        lambda all: container(all)["args"].__setitem__(0, container(all)["args"][0].replace("--max-w", "--w")),
        "labkit serve has no --waiting",
    ),
    "another command": (
        lambda all: container(all)["args"].__setitem__(0, container(all)["args"][0].replace(" pull ", " get ")),
        "labkit has no command get",
    ),
    "another port": (
        lambda all: container(all)["args"].__setitem__(0, container(all)["args"][0].replace("8000", "8001")),
        "listens on a port that is not declared",
    ),
    "a variable that nobody reads": (
        lambda all: container(all)["env"].append({"name": "LABKIT_MODELS", "value": "x"}),
        "nobody reads LABKIT_MODELS",
    ),
    "a volume is not mounted": (lambda all: container(all)["volumeMounts"].pop(), "volumes are ['cache', 'tmp']"),
    "killed while it drains": (
        lambda all: pod(all).update(terminationGracePeriodSeconds=30),
        "the pod is killed after 30 s, and needs 40",
    ),
    "no pause before the end": (lambda all: container(all).pop("lifecycle"), "there is no pause before the end"),
    "root": (lambda all: pod(all)["securityContext"].update(runAsNonRoot=False), "the pod may run as root"),
    "a token": (lambda all: pod(all).pop("automountServiceAccountToken"), "the pod carries a token"),
    "no seccomp": (lambda all: pod(all)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    "a writable root": (
        lambda all: container(all)["securityContext"].update(readOnlyRootFilesystem=False),
        "may write into its image",
    ),
    "rights are kept": (
        lambda all: container(all)["securityContext"].pop("capabilities"),
        "the container may gain rights",
    ),
    "half a GPU asked for": (
        lambda all: container(all)["resources"]["requests"].pop("nvidia.com/gpu"),
        "a GPU's request must equal its limit",
    ),
    "a metric that is not told": (
        lambda all: of("HorizontalPodAutoscaler", all)["spec"]["metrics"][0]["pods"]["metric"].update(name="queue"),
        "the server tells no queue",
    ),
    "another one is scaled": (
        lambda all: of("HorizontalPodAutoscaler", all)["spec"]["scaleTargetRef"].update(name="fleet"),
        "there is no Deployment fleet",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_broken_is_found(name):
    change, words = MUTATIONS[name]
    manifests = copy.deepcopy(read(FOLDER / "base"))
    change(manifests)
    assert any(words in fault for fault in faults(manifests)), faults(manifests)


def test_calls_are_read_out_of_a_script():
    assert commands('x=$(labkit registry pull "$M")\nexec labkit serve --port 1 \\\n  --device cuda; ls') == [
        ["registry", "pull", "$M"], ["serve", "--port", "1", "--device", "cuda"]]  # fmt: skip
    assert "LABKIT_API_KEYS" in sources()


def test_the_operator_gets_the_same_rules():
    rules = (MONITORING / "rules.yml").read_text("utf-8")
    moved = re.sub("(?m)^(?=.)", "  ", rules[rules.index("groups:") :])
    text = (FOLDER / "monitoring" / "prometheusrule.yaml").read_text("utf-8")
    assert text.partition("\nspec:\n")[2] == moved, "the first lines of prometheusrule.yaml say how it is made again"


def test_prometheus_finds_the_pods():
    (monitor,) = read(FOLDER / "monitoring" / "podmonitor.yaml")
    deployed = of("Deployment", read(FOLDER / "base"))["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= deployed["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in deployed["spec"]["containers"][0]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert endpoint["relabelings"][0]["sourceLabels"] == ["__meta_kubernetes_pod_label_labkit_alias"]
    assert endpoint["relabelings"][0]["replacement"].startswith("labkit-")


def test_the_image_is_the_one_that_the_manifests_expect():
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    security = pod(read(FOLDER / "base"))["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in text
    assert f"--uid {security['runAsUser']}" in text
    assert "HEALTHCHECK" in text
    assert "EXPOSE 8000" in text
