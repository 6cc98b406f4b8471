"""What a fleet serves and how, decided once: plain data that travels to every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from labkit.core.whole import need_whole
from labkit.serve.fleet.policies import POLICIES


@dataclass(frozen=True)
class Plan:
    """A model of a registry, and the replicas that answer for it.

    Args:
        store: where the registry is (see `labkit.serve.registry.open_registry`).
        model: a name and a version or an alias, such as "four-domains@prod".
        replicas: how many; most: with more than `replicas` they are added while requests wait, up to so many.
        target: requests under way for each replica, above which another is added.
        surge: replicas more than that while a rollout lasts: so many new ones start before old ones end. 0: an old one
            ends first, so that no machine is needed that is not there.
        policy: who gets a request (see `policies`); seed: of what it draws.
        device, dtype: see `labkit.serve.server.model.Model`; cpus, gpus: that Ray sets aside for each replica.
        max_sequences, max_waiting, num_blocks: of each replica's engine; None: what fits.
        metrics_host: where each replica's metrics are heard; None: the address of its machine.
        cache: a folder for what was pulled; None: the registry's own.
        retries: how often a request is sent again when its replica dies.
        wait_seconds: how long a request waits for a replica when none is ready.
        drain_seconds: how long answers may go on when a replica is replaced.

    Raises ValueError for values out of range.

    >>> Plan("store", "four-domains@prod").name, Plan("store", "four-domains@prod").ref
    ('four-domains', 'prod')
    >>> Plan("store", "four-domains")
    Traceback (most recent call last):
    ValueError: model is 'four-domains'; give a name and a version or an alias, such as 'four-domains@prod'
    """

    store: str
    model: str
    replicas: int = 2
    most: int | None = None
    target: float = 4.0
    surge: int = 0
    policy: str = "power_of_two"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    max_sequences: int | None = None
    max_waiting: int | None = None
    num_blocks: int | None = None
    metrics_host: str | None = None
    cache: str | None = None
    retries: int = 2
    wait_seconds: float = 10.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        name, _, ref = self.model.partition("@")
        if not name or not ref:
            words = "give a name and a version or an alias, such as 'four-domains@prod'"
            raise ValueError(f"model is {self.model!r}; {words}")
        need_whole("replicas", self.replicas, 1)
        need_whole("retries", self.retries, 0)
        need_whole("surge", self.surge, 0)
        if self.surge > self.replicas:
            raise ValueError(f"surge is {self.surge}, for {self.replicas} replicas; give no more than there are")
        if self.most is not None:
            need_whole("most", self.most, self.replicas)
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; choose from {', '.join(POLICIES)}")
        for field in ("target", "drain_seconds"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)!r}; give a number above 0")
        for field in ("cpus", "gpus", "wait_seconds"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} is {getattr(self, field)!r}; give 0 or more")

    @property
    def name(self) -> str:
        """Of the model, as requests give it."""
        return self.model.partition("@")[0]

    @property
    def ref(self) -> str:
        """The version or the alias."""
        return self.model.partition("@")[2]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Plan:
        """A plan from a config file. Raises ValueError for keys that no plan has, and where one is missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"a fleet has no {', '.join(unknown)}; it knows {', '.join(sorted(known))}")
        if missing := [key for key in ("store", "model") if key not in given]:
            raise ValueError(f"{' and '.join(missing)} must be given")
        return cls(**given)

    def told(self) -> dict[str, Any]:
        """As `read` takes it."""
        return asdict(self)
