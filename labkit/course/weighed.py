"""Small modules whose tensors share memory, for exercises that count bytes: described in words, built where they run.

What is sent to a grader's sandbox arrives as copies, and copies share nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Line = tuple[str, str, Any]


def weigh(answer: Callable[[nn.Module, Callable[[str], str]], Any], lines: tuple[Line, ...]) -> Any:
    """Build the module that the lines describe, and return what `answer(module, room)` says about it.

    Args:
        lines: name, kind, and (shape, dtype) of each tensor, in order. Kinds are "parameter", "buffer", "scratch" (a
            buffer that is not saved), "same" (the tensor named in place of a shape, under a second name), "rows"
            (a parameter that is (name, rows): a view of the first rows of another) and "end" (the same of its last
            rows: a view that begins inside another's memory).

    A tensor's room is the first word of its name.
    """
    found = answer(built(lines), first_word)
    return dict(found) if isinstance(found, dict) else found


def first_word(name: str) -> str:
    """The room of a tensor.

    >>> first_word("experts.0.codes")
    'experts'
    """
    return name.split(".")[0]


def built(lines: tuple[Line, ...]) -> nn.Module:
    """The module of some lines.

    >>> [name for name, _ in built((("a.b.w", "parameter", ((2, 3), torch.float32)),)).named_parameters()]
    ['a.b.w']
    """
    root, made = nn.Module(), {}
    for name, kind, what in lines:
        *path, leaf = name.split(".")
        module = root
        for word in path:
            if word not in module._modules:
                module.add_module(word, nn.Module())
            module = module._modules[word]
        made[name] = _tensor(kind, what, made)
        if isinstance(made[name], nn.Parameter):
            module.register_parameter(leaf, made[name])
        else:
            module.register_buffer(leaf, made[name], persistent=kind != "scratch")
    return root


def _tensor(kind: str, what: Any, made: dict[str, Tensor]) -> Tensor:
    if kind == "same":
        return made[what]
    if kind in ("rows", "end"):
        name, rows = what
        part = made[name].data[:rows] if kind == "rows" else made[name].data[-rows:]
        return nn.Parameter(part, requires_grad=False)
    shape, dtype = what
    tensor = torch.zeros(shape, dtype=dtype)
    return nn.Parameter(tensor, requires_grad=False) if kind == "parameter" else tensor
