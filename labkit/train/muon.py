"""Muon: momentum, made orthogonal before it moves a matrix.

Keller Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"), with the two changes of
Moonlight (Liu et al. 2025, arXiv 2502.16982): weight decay, and an update scaled so that its root mean square is that
of AdamW. Fused expert tensors [E, rows, columns] are E matrices, and a gate_up tensor is two of them for each expert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; Keller Jordan 2024


def orthogonalise(matrices: Tensor, steps: int = 5, *, dtype: torch.dtype | None = None, eps: float = 1e-7) -> Tensor:
    """Replace the singular values of every matrix by values near 1: Newton–Schulz, a quintic polynomial a few times.

    Args:
        matrices: [..., rows, columns], floating point; leading dimensions are a batch.
        steps: iterations. Five bring singular values from a five-hundredth of the norm upwards into [0.68, 1.21].
        dtype: of the products. Left out: bfloat16 on a GPU, and the input's own on the CPU.
        eps: the least norm divided by, so that a zero matrix stays zero.

    Returns the same shape in `dtype`. Raises ValueError for a vector.

    >>> orthogonalise(torch.zeros(2, 3, 2)).abs().max().item()
    0.0
    """
    if matrices.ndim < 2:
        raise ValueError(f"orthogonalise was given shape {tuple(matrices.shape)}; give matrices [..., rows, columns]")
    dtype = dtype or (torch.bfloat16 if matrices.device.type == "cuda" else matrices.dtype)
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x = wide.reshape(-1, *wide.shape[-2:]).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(wide.shape)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon for matrices and for stacks of matrices.

    Args:
        params: parameters, or groups of them. A group's `parts` says how many matrices stand on top of each other in
            its parameters' rows (2 for gate_up: gate and up are made orthogonal apart); 1 if left out.
        lr: the learning rate, as one would choose it for AdamW: the update is multiplied by
            0.2 · sqrt(max(rows, columns)) (Moonlight, section 2.2).
        weight_decay: decoupled, as in AdamW; momentum: of the running sum; nesterov: whether it looks ahead.
        steps: of Newton–Schulz; dtype: of its products (`orthogonalise`).

    `found_inf`, a tensor that may be set as an attribute, makes the next step change nothing where it is 1: fused
    AdamW reads the same attribute. Raises ValueError for a vector and for numbers out of range.

    >>> weights = torch.nn.Parameter(torch.eye(2))
    >>> optimizer = Muon([weights], lr=0.1, weight_decay=0.0)
    >>> weights.square().sum().backward(); optimizer.step()
    >>> bool((weights.diagonal() < 1).all())
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        dtype: torch.dtype | None = None,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or steps < 1:
            raise ValueError(
                f"Muon was given lr {lr}, weight_decay {weight_decay}, momentum {momentum} and steps {steps}; give "
                "numbers of 0 or more, a momentum below 1 and at least one step"
            )
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "steps": steps,
            "dtype": dtype, "parts": 1,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2 or p.shape[-2] % group["parts"]:
                    raise ValueError(
                        f"Muon takes matrices whose rows divide into {group['parts']} parts, got shape "
                        f"{tuple(p.shape)}; give it to AdamW (`build_optimizer` does)"
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, p.dtype, p.device].append(p)
            for parameters in alike.values():
                self._update(parameters, group, found_inf)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        """Move parameters of one shape together: one batch of matrices, few kernels."""
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        grad, buffer = torch.stack([p.grad for p in parameters]), torch.stack(buffers)
        if found_inf is not None:
            grad = torch.where(found_inf > 0, buffer, grad)  # the running mean stays what it is
        buffer.lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        torch._foreach_copy_(buffers, buffer.unbind())
        matrices = ahead.unflatten(-2, (group["parts"], -1))
        update = orthogonalise(matrices, group["steps"], dtype=group["dtype"]).flatten(-3, -2).to(buffer.dtype)
        rate = group["lr"] * 0.2 * max(matrices.shape[-2:]) ** 0.5
        change = rate * update + group["lr"] * group["weight_decay"] * torch.stack(parameters)
        if found_inf is not None:
            change = torch.where(found_inf > 0, torch.zeros_like(change), change)
        torch._foreach_sub_(parameters, change.unbind())
