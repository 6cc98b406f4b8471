"""The RayService says what the fleet understands, and its pods are as careful as the others."""

from __future__ import annotations

import copy
import importlib

import pytest
import yaml
from deploy_names import ROOT
from manifests import FOLDER, container_faults, pod_security, read

from labkit.serve.fleet.plan import Plan

(SERVICE,) = read(FOLDER / "ray" / "rayservice.yaml")
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
PODS = [CLUSTER["headGroupSpec"]["template"]["spec"], CLUSTER["workerGroupSpecs"][0]["template"]["spec"]]
APPLICATIONS = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda each: each["name"])
def test_an_application_is_one_of_ours_and_takes_these_arguments(application):
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    Plan.read(application["args"])


def test_both_applications_have_one_plan_and_only_the_front_is_reached():
    model, front = APPLICATIONS
    assert (model["name"], model["route_prefix"]) == ("model", None)
    assert (front["name"], front["route_prefix"]) == ("front", "/")
    assert model["args"] == front["args"]


def test_the_workers_hold_the_replicas():
    plan = Plan.read(APPLICATIONS[0]["args"])
    (group,) = CLUSTER["workerGroupSpecs"]
    (worker,) = PODS[1]["containers"]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert (plan.most or plan.replicas) * plan.gpus <= group["replicas"] * gpus
    assert plan.cpus <= float(worker["resources"]["requests"]["cpu"])
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert plan.cache.startswith("/cache/")
    assert all(plan.drain_seconds < pod["terminationGracePeriodSeconds"] for pod in PODS)


@pytest.mark.parametrize("pod", PODS, ids=["head", "worker"])
def test_a_pod_is_as_careful_as_the_others(pod):
    assert [*pod_security(pod), *(fault for each in pod["containers"] for fault in container_faults(each, {}))] == []
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports["serve"] == yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["http_options"]["port"]


def test_what_is_broken_is_found():
    pod = copy.deepcopy(PODS[1])
    pod["securityContext"]["runAsNonRoot"] = False
    pod["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] = "keys"
    pod["containers"][0]["env"].append({"name": "LABKIT_KEY", "value": "x"})
    assert list(pod_security(pod)) == ["the pod may run as root"]
    found = list(container_faults(pod["containers"][0], {}))
    assert "there is no secret keys with keys" in found
    assert "nobody reads LABKIT_KEY" in found
    with pytest.raises(ValueError, match="a fleet has no replica"):
        Plan.read({**APPLICATIONS[0]["args"], "replica": 2})


def test_the_image_has_this_ray():
    assert f"ARG RAY_VERSION={CLUSTER['rayVersion']}\n" in (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
