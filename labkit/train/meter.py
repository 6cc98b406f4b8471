"""What a run measures between two lines of its log, summed on the device so that nothing waits for it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.core.cost import model_flops_per_token
from labkit.train.crossentropy import IGNORED
from labkit.train.feed import Micro

MOST_DOMAINS = 64


class Meter:
    """Sums of losses by domain and of tokens by expert.

    Args:
        device: where losses are.

    >>> meter = Meter("cpu")
    >>> target = torch.tensor([[1, 2], [3, -100]])
    >>> meter.add(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), Micro(target, target, target, torch.tensor([[0], [1]]),
    ...           ("code", "english"), 3))
    >>> meter.loss(), meter.by_domain()
    (3.0, {'code': 2.0, 'english': 5.0})
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device, self.names = torch.device(device), []
        self.clear()

    def clear(self) -> None:
        """Begin anew; the names of domains stay."""
        self._sums_D2 = torch.zeros(MOST_DOMAINS, 2, dtype=torch.float64, device=self.device)
        self._loads: list[Tensor] = []

    def add(self, loss_BS: Tensor, micro: Micro) -> None:
        """Add a batch's losses; raises ValueError for more than 64 domains."""
        index_BS = self._index(micro)[micro.domain_BS]
        pair_BS2 = torch.stack([loss_BS.detach().double(), (micro.target_BS != IGNORED).double()], dim=-1)
        if index_BS.shape[1] == 1:  # one domain for each sequence
            pair_BS2 = pair_BS2.sum(1, keepdim=True)
        self._sums_D2.index_add_(0, index_BS.flatten(), pair_BS2.flatten(0, 1))

    def add_loads(self, loads: list[Tensor]) -> None:
        """Add a step's tokens per expert, an [E] for each sparse layer."""
        self._loads = [a + b for a, b in zip(self._loads, loads, strict=True)] if self._loads else list(loads)

    def loss(self) -> float:
        """The mean over all labels, in nats; NaN if there were none."""
        total, count = self._sums_D2.sum(0).tolist()
        return total / count if count else float("nan")

    def by_domain(self) -> dict[str, float]:
        """The mean of each domain that occurred, in nats, in the order in which they first did."""
        rows = zip(self.names, self._sums_D2.tolist()[: len(self.names)], strict=True)
        return {name: total / count for name, (total, count) in rows if count}

    def violations(self) -> list[float]:
        """For each sparse layer, how far its busiest expert is above the mean load: max / mean − 1."""
        loads = [load_E.double() for load_E in self._loads]
        return torch.stack([load_E.max() / load_E.mean() - 1 for load_E in loads]).tolist() if loads else []

    def state(self) -> dict[str, Any]:
        """The sums, JSON-able."""
        loads = [load_E.tolist() for load_E in self._loads]
        return {"names": list(self.names), "sums": self._sums_D2[: len(self.names)].tolist(), "loads": loads}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from these sums."""
        self.clear()
        self.names = list(state["names"])
        sums_D2 = torch.tensor(state["sums"], dtype=torch.float64).reshape(-1, 2)
        self._sums_D2[: len(self.names)] = sums_D2.to(self.device)
        self._loads = [torch.tensor(load_E, device=self.device) for load_E in state["loads"]]

    def _index(self, micro: Micro) -> Tensor:
        """The place of each of the batch's domains among all that were seen."""
        for name in micro.domains:
            if name not in self.names:
                self.names.append(name)
        if len(self.names) > MOST_DOMAINS:
            raise ValueError(f"there are more than {MOST_DOMAINS} domains; give sequences broader labels")
        places = torch.tensor([self.names.index(name) for name in micro.domains])
        if self.device.type == "cuda":
            places = places.pin_memory()
        return places.to(self.device, non_blocking=True)


def flops_per_token(model: nn.Module, sequence: int) -> float | None:
    """FLOPs that training needs for a token: 3 times the forward pass (6 for each active parameter, and attention).

    Args:
        model: counted if its `config` is a `ModelConfig`, else None; multi-token modules are left out.
        sequence: S; under a causal mask a token sees (S + 1) / 2 positions on average.

    Recomputation is not counted: it is work of the implementation, not of the model.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        return None
    return 3.0 * model_flops_per_token(config, (sequence + 1) // 2).total


def peak_memory(device: torch.device) -> int | None:
    """The most bytes used so far: allocated by torch on a GPU, resident on the CPU (None where nobody counts)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
