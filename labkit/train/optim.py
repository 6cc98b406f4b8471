"""Which parameter is moved by which optimiser, and with how much decay: AdamW alone, or Muon and AdamW together.

The groups are read off the model: vectors (norms, biases, sinks) are never decayed, and Muon takes the matrices inside
the blocks, among them every expert's. Embedding, head and router stay with AdamW, as in Moonlight (Liu et al. 2025,
arXiv 2502.16982, section 2.2). The router's selection bias is a buffer: no optimiser touches it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from labkit.train.muon import Muon, orthogonalise

__all__ = ["OPTIMIZERS", "Muon", "MuonWithAdamW", "adamw", "build_optimizer", "groups", "orthogonalise"]

OPTIMIZERS = ("adamw", "muon")
Groups = list[dict[str, Any]]


def groups(model: nn.Module, weight_decay: float) -> Groups:
    """Two groups for AdamW: matrices, which decay, and vectors, which do not.

    Args:
        model: its parameters that need gradients; a shared one counts once.
        weight_decay: of the matrices.

    The vectors are the parameters of one dimension, and expert biases: [E, width], a vector for each expert.

    >>> [len(g["params"]) for g in groups(nn.Sequential(nn.Linear(2, 3), nn.RMSNorm(3)), 0.1)]
    [1, 2]
    """
    named = _trainable(model)
    return [
        {"params": [p for name, p in named if not is_vector(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if is_vector(name, p)], "weight_decay": 0.0},
    ]


def is_vector(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a vector, or one vector for each expert.

    >>> is_vector("experts.down_bias_ED", torch.zeros(4, 8)), is_vector("router.weight_ED", torch.zeros(4, 8))
    (True, False)
    """
    return parameter.ndim < 2 or "bias" in name.rpartition(".")[2]


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), fused, over `groups`.

    Args:
        model: what is trained.
        lr: the learning rate; weight_decay: of matrices.
        betas: how slowly the two running means move; eps: added to the root.
    """
    return AdamW(groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


class MuonWithAdamW(Optimizer):
    """Both optimisers as one: one list of groups, one state, one `state_dict`.

    Args:
        muon: groups for Muon; adamw: groups for AdamW.
        lr: of both. Groups may differ later; schedules set `group["lr"]`.
        weight_decay, betas, eps: as in `adamw`; momentum: Muon's.
    """

    def __init__(
        self,
        muon: Groups,
        adamw: Groups,
        lr: float,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        self.muon = Muon(muon, lr=lr, weight_decay=weight_decay, momentum=momentum)
        self.adamw = AdamW(adamw, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._link()

    def _link(self) -> None:
        """The two halves read and write this object's groups and state."""
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.muon.state = self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update by both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in (self.muon, self.adamw):
            half.found_inf = getattr(self, "found_inf", None)
            half.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._link()


def build_optimizer(
    model: nn.Module,
    name: Literal["adamw", "muon"] = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
) -> Optimizer:
    """The optimiser of this name over a model's parameters.

    Args:
        model: what is trained; "muon" reads the names of its parameters to tell blocks from embedding, head and router.
        name: "adamw" or "muon".
        lr, weight_decay, betas, eps: as in `adamw`; momentum: Muon's; AdamW has betas instead.

    Raises ValueError for another name, and for "muon" on a model without a matrix for it.
    """
    if name == "adamw":
        return adamw(model, lr, weight_decay, betas, eps)
    if name != "muon":
        raise ValueError(f"the optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    named = _trainable(model)
    matrices = [(n, p) for n, p in named if for_muon(n, p, model)]
    if not matrices:
        raise ValueError("this model has no matrix inside its blocks for muon; choose 'adamw'")
    taken = {id(p) for _, p in matrices}
    rest = [(n, p) for n, p in named if id(p) not in taken]
    return MuonWithAdamW(
        [
            {"params": [p for n, p in matrices if rows_hold(n) == parts], "parts": parts}
            for parts in (1, 2)
            if any(rows_hold(n) == parts for n, _ in matrices)
        ],
        [
            {"params": [p for n, p in rest if not is_vector(n, p)], "weight_decay": weight_decay},
            {"params": [p for n, p in rest if is_vector(n, p)], "weight_decay": 0.0},
        ],
        lr, weight_decay, betas, eps, momentum,
    )  # fmt: skip


def for_muon(name: str, parameter: Tensor, model: nn.Module) -> bool:
    """Whether Muon moves this parameter: a matrix of a block that is no embedding, head, router or vector."""
    if is_vector(name, parameter):
        return False
    owner = model.get_submodule(name.rpartition(".")[0])
    parts = name.split(".")
    outside = {"embed", "head", "router", "embed_tokens", "lm_head", "gate"} & set(parts[:-1])
    return not isinstance(owner, nn.Embedding) and not outside


def rows_hold(name: str) -> int:
    """How many matrices lie on top of each other in a parameter's rows: 2 in gate_up, 1 elsewhere.

    >>> rows_hold("layers.0.ffn.experts.gate_up_E2FD"), rows_hold("layers.0.ffn.experts.down_EDF")
    (2, 1)
    """
    return 2 if name.rpartition(".")[2].startswith("gate_up") else 1


def _trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
