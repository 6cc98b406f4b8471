"""Whether manifests hold together: every name that one part uses is there in another part, or in the program."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
import yaml
from deploy_names import ROOT, of_the_server
from scripted_backend import TEXT, Scripted

from labkit.course.cli import app
from labkit.serve.fleet.deployed import deployed
from labkit.serve.server.app import create_app
from labkit.serve.server.launch import LEAVE_SECONDS

FOLDER = deployed() / "kubernetes"
Manifest = dict[str, Any]
READERS = ("botocore/credentials.py", "botocore/configprovider.py", "botocore/args.py", "botocore/utils.py",
           "triton/knobs.py", "triton/runtime/cache.py", "huggingface_hub/constants.py", "pathlib.py")  # fmt: skip


def read(path: Path) -> list[Manifest]:
    """The manifests of a file, or of the files that a kustomization lists, with the ConfigMaps that it makes."""
    if path.is_file():
        return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}")
    (told,) = read(path / "kustomization.yaml")
    found = [each for name in told["resources"] for each in read(path / name)]
    for made in told.get("configMapGenerator", ()):
        data = dict(literal.split("=", 1) for literal in made["literals"])
        found.append({"kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    return found


def faults(manifests: Sequence[Manifest]) -> list[str]:
    """What does not fit, as sentences; nothing if all is well."""
    pods = [each["spec"]["template"] for each in manifests if each["kind"] == "Deployment"]
    labels = [pod["metadata"]["labels"] for pod in pods]
    ports = {port["name"]: port["containerPort"] for pod in pods for each in pod["spec"]["containers"]
             for port in each.get("ports", ())}  # fmt: skip
    wrong: list[str] = []
    for each in manifests:
        where = f"{each['kind']} {each['metadata']['name']}"
        for selector in _selectors(each):
            if not selector or not any(selector.items() <= one.items() for one in labels):
                wrong.append(f"{where} selects {selector}, which no pod has")
        for port in _ports(each):
            if isinstance(port, str) and port not in ports:
                wrong.append(f"{where} names port {port}; pods have {', '.join(ports)}")
        if each["kind"] == "HorizontalPodAutoscaler":
            wrong += [f"{where}: {words}" for words in _scaling(each["spec"], manifests)]
    for pod in pods:
        wrong += pod_faults(pod["spec"], manifests)
    return wrong


def pod_faults(pod: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    """What does not fit in a pod of `labkit serve`: its account, security, volumes, and each container."""
    there = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    if ("ServiceAccount", pod.get("serviceAccountName")) not in there:
        yield f"there is no ServiceAccount {pod.get('serviceAccountName')}"
    yield from pod_security(pod)
    for container in pod["containers"]:
        yield from container_faults(container, there)
        yield from _probe_faults(container)
        ports = {port["containerPort"] for port in container.get("ports", ())}
        yield from command_faults(script(container), ports)
        yield from _ending(container, pod["terminationGracePeriodSeconds"])


def pod_security(pod: Manifest) -> Iterator[str]:
    """Rights that a pod should not have, and volumes that nobody mounts."""
    if pod.get("automountServiceAccountToken") is not False:
        yield "the pod carries a token"
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "the pod may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    volumes = {each["name"] for each in pod.get("volumes", ())}
    mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())}
    if volumes != mounted:
        yield f"volumes are {sorted(volumes)}, mounted are {sorted(mounted)}"


def container_faults(container: Manifest, there: Mapping[tuple[str, str], Manifest]) -> Iterator[str]:
    """Rights, resources and variables of a container that are not as they should be."""
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
        yield "the container may gain rights"
    if not security.get("readOnlyRootFilesystem"):
        yield "the container may write into its image"
    resources = container["resources"]
    if not {"cpu", "memory"} <= set(resources["requests"]) or "memory" not in resources["limits"]:
        yield "requests and limits are not given"
    if resources["requests"].get("nvidia.com/gpu") != resources["limits"].get("nvidia.com/gpu"):
        yield "a GPU's request must equal its limit"
    environment: set[str] = set()
    for entry in container.get("env", ()):
        environment.add(entry["name"])
        if secret := entry.get("valueFrom", {}).get("secretKeyRef"):
            if secret["key"] not in secrets().get(secret["name"], ()):
                yield f"there is no secret {secret['name']} with {secret['key']}"
        elif re.search("KEY|SECRET|TOKEN|PASSWORD", entry["name"]):
            yield f"{entry['name']} stands in the manifest; take it from a secret"
    for entry in container.get("envFrom", ()):
        config = there.get(("ConfigMap", entry["configMapRef"]["name"]))
        if config is None:
            yield f"there is no ConfigMap {entry['configMapRef']['name']}"
        else:
            environment |= set(config["data"])
    yield from (f"nobody reads {name}" for name in sorted(environment) if not is_read(name, script(container)))


def _probe_faults(container: Manifest) -> Iterator[str]:
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        got = container.get(name, {}).get("httpGet", {})
        if got.get("path") not in routes() or got.get("port") not in ports:
            yield f"{name} asks {got}, which the server does not answer"


def script(container: Manifest) -> str:
    """Everything that a container runs."""
    return " ".join([*container.get("command", ()), *container.get("args", ())])


def commands(text: str) -> list[list[str]]:
    """The calls of labkit in a shell script, as words."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"labkit((?: +(?:\"[^\"]*\"|[^\s\"();|&]+))+)", text)
    return [shlex.split(each) for each in found]


def command_faults(text: str, ports: set[int]) -> Iterator[str]:
    """Commands, options and ports that the program does not have."""
    calls = commands(text)
    if not calls:
        yield "no labkit is called"
    for words in calls:
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            if not words or words[0] not in command.commands:
                yield f"labkit has no command {' '.join(words[:1])}"
                return
            command, words = command.commands[words[0]], words[1:]
        known = {option for each in command.params for option in each.opts}
        yield from (f"labkit {command.name} has no {word}" for word in words if word[:2] == "--" and word not in known)
        if "--port" in words and int(words[words.index("--port") + 1]) not in ports:
            yield f"labkit {command.name} listens on a port that is not declared"


def _ending(container: Manifest, grace: float) -> Iterator[str]:
    before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if before[:1] != ["sleep"]:
        yield "there is no pause before the end, so that requests still come when none is taken"
        return
    for words in commands(script(container)):
        if "--drain-seconds" in words:
            need = float(before[1]) + float(words[words.index("--drain-seconds") + 1]) + LEAVE_SECONDS
            if grace < need:
                yield f"the pod is killed after {grace:g} s, and needs {need:g} to end"


def _scaling(spec: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    target = spec["scaleTargetRef"]
    if not any((each["kind"], each["metadata"]["name"]) == (target["kind"], target["name"]) for each in manifests):
        yield f"there is no {target['kind']} {target['name']}"
    for each in spec["metrics"]:
        if each["pods"]["metric"]["name"] not in of_the_server():
            yield f"the server tells no {each['pods']['metric']['name']}"


def _selectors(each: Manifest) -> Iterator[dict[str, str]]:
    spec = each.get("spec", {})
    if each["kind"] == "Service":
        yield spec["selector"]
    elif each["kind"] in ("Deployment", "PodDisruptionBudget"):
        yield spec["selector"]["matchLabels"]
    elif each["kind"] == "NetworkPolicy":
        yield spec["podSelector"]["matchLabels"]
    for one in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", ()):
        yield one["labelSelector"]["matchLabels"]


def _ports(each: Manifest) -> Iterator[str | int]:
    if each["kind"] == "Service":
        yield from (port["targetPort"] for port in each["spec"]["ports"])
    elif each["kind"] == "NetworkPolicy":
        yield from (port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"])


@functools.cache
def routes() -> frozenset[str]:
    """The paths that the server answers."""
    return frozenset(route.path for route in create_app(Scripted(), TEXT).routes)


@functools.cache
def secrets() -> dict[str, frozenset[str]]:
    """The secrets that the example makes, with their keys."""
    return {each["metadata"]["name"]: frozenset(each["stringData"]) for each in read(FOLDER / "secrets.example.yaml")}


@functools.cache
def sources() -> str:
    """The text of labkit and of the files of its libraries that read the environment."""
    files = [*(ROOT / "labkit").rglob("*.py")]
    for name in READERS:
        package, _, rest = name.partition("/")
        found = find_spec(package.removesuffix(".py"))
        if found is not None and found.origin:
            files.append(Path(found.origin).parent / rest if rest else Path(found.origin))
    return "\n".join(path.read_text("utf-8") for path in files if path.is_file())


def is_read(name: str, script: str) -> bool:
    """Whether a variable is used by the script, or by the program or its libraries."""
    quoted = rf"[\"']{name}[\"']"
    return bool(name == "HOME" or re.search(rf"\${{?{name}\b", script) or re.search(quoted, sources()))
