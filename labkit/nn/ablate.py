"""Taking experts out of a router while it runs, without touching its weights.

The router computes as ever, but what it computes passes here: its logits lose those experts (−∞), and so does whatever
it selects by, such as scores plus a bias. Everything after that is the router's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SELECTS = {torch.topk, torch.Tensor.topk, torch.sort, torch.Tensor.sort, torch.argsort, torch.Tensor.argsort}


@contextmanager
def without(router: nn.Module, experts: Sequence[int], num_experts: int) -> Iterator[None]:
    """Inside the block `router` decides as if these experts did not exist.

    Exact for a router whose last product with a matrix gives the logits and which selects with topk or sort, as every
    router of ours that learns, and those of transformers. Who uses it should look whether the experts are gone. Where a
    limit on groups takes the sum of a group's two best, a group with one expert left is worth twice that one.

    Args:
        router: a module that is called inside the block.
        experts: their numbers, each in [0, num_experts).
        num_experts: E, the width of the logits.
    """
    running: list[_Without] = []

    def enter(module: nn.Module, given: Any) -> None:
        running.append(_Without(experts, num_experts))
        running[-1].__enter__()

    def leave(module: nn.Module, given: Any, answer: Any) -> None:
        if running:  # not where another hook raised before `enter`
            running.pop().__exit__(None, None, None)

    hooks = [router.register_forward_pre_hook(enter), router.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Without(TorchFunctionMode):
    def __init__(self, experts: Sequence[int], num_experts: int) -> None:
        super().__init__()
        self.experts, self.num_experts = list(experts), num_experts

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SELECTS and args and args[0].is_floating_point():
            return func(self._out(args[0]), *args[1:], **kwargs)
        answer = func(*args, **kwargs)
        return self._out(answer) if func is F.linear else answer

    def _out(self, values: Tensor) -> Tensor:
        experts = torch.tensor(self.experts, device=values.device)
        if values.shape[-1] == self.num_experts:
            return values.index_fill(-1, experts, float("-inf"))
        if values.ndim == 3 and values.shape[1] * values.shape[2] == self.num_experts:
            return self._out_of_groups(values, experts)
        return values

    def _out_of_groups(self, values_TGN: Tensor, experts: Tensor) -> Tensor:
        """Each lost expert counts as the least of its group, so it is not among the best; −∞ where all are lost."""
        rest_TGN = values_TGN.flatten(1).index_fill(1, experts, float("inf")).view(values_TGN.shape)
        least_TG1 = rest_TGN.amin(-1, keepdim=True)
        least_TG1 = least_TG1.where(least_TG1 < float("inf"), float("-inf"))
        return torch.where(rest_TGN == float("inf"), least_TG1, rest_TGN)
