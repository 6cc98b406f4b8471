"""The two applications of a fleet, as Ray Serve deploys them: on a laptop by `Fleet`, on KubeRay from a config file.

In a config file they are `labkit.serve.fleet.app:model`, with the keys of `Plan` as its `args`, and
`labkit.serve.fleet.app:front`, with the route prefix "/" and the same `args`. A change of the model's version in the
config replaces the replicas one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.serve.fleet.front import MODEL_APP, Front
from labkit.serve.fleet.plan import Plan
from labkit.serve.fleet.replica import Replica

CONCURRENT = 1024  # requests that a replica holds at once; its own server refuses more politely
HEALTH_SECONDS = 1.0
TRIES = 3  # starts that may fail until a version is given up


def model(args: Mapping[str, Any]) -> Any:
    """The replicas. The alias is followed now; `labkit fleet` and `Fleet.rollout` follow it later."""
    from labkit.serve.registry import open_registry

    plan = Plan.read(args)
    return replicas(plan, open_registry(plan.store).version(plan.name, plan.ref).id)


def replicas(plan: Plan, version: str) -> Any:
    """The replicas of one version."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    grows = plan.most is not None and plan.most > plan.replicas
    if grows:
        size = {"autoscaling_config": AutoscalingConfig(
            min_replicas=plan.replicas, initial_replicas=plan.replicas, max_replicas=plan.most,
            target_ongoing_requests=plan.target, upscale_delay_s=2, downscale_delay_s=30, metrics_interval_s=1,
            look_back_period_s=2,
        )}  # fmt: skip
    else:
        size = {"num_replicas": plan.replicas}
    if plan.surge:
        size["max_surge_percent"] = max(1, 100 * plan.surge // plan.replicas)
    made = serve.deployment(
        Replica,
        name="Replica",
        **size,
        max_ongoing_requests=CONCURRENT,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=plan.drain_seconds,
        max_constructor_retry_count=max(TRIES, plan.replicas),
        request_router_config=RequestRouterConfig(request_router_class="labkit.serve.fleet.route.Told"),
    )
    # Without a version of its own Ray would replace every replica whenever their number changes.
    made = made.options(version=version, _internal=True)
    return made.bind(plan.told(), version)


def front(args: Mapping[str, Any]) -> Any:
    """The front."""
    from ray import serve

    plan = Plan.read(args)
    made = serve.deployment(
        Front, name="Front", max_ongoing_requests=4 * CONCURRENT, ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.2, graceful_shutdown_timeout_s=plan.drain_seconds,
        user_config={"policy": plan.policy, "seed": plan.seed},
    )  # fmt: skip
    # With the same version another policy is told to the front that runs; without one, Ray would start it anew.
    made = made.options(version=f"{plan.retries} retries, {plan.wait_seconds:g} s", _internal=True)
    return made.bind(plan.retries, plan.wait_seconds, MODEL_APP)
