"""What every view of routing begins with: records checked, detached and in order, and labels that can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from labkit.core.routing import Routing


def as_layers(records: Routing | Sequence[Routing], who: str) -> tuple[Routing, ...]:
    """One record a layer, on the CPU and without gradients, all about the same tokens and as many experts.

    Raises ValueError, in the name of the view `who`, for anything else, for no record, and for records of no token.

    >>> r = Routing.of(torch.zeros(1, 2), torch.tensor([[0]]), torch.ones(1, 1))
    >>> len(as_layers(r, "ribbon"))
    1
    """
    layers = tuple(records) if isinstance(records, Iterable) else (records,)
    if not layers or not all(isinstance(r, Routing) for r in layers):
        kinds = ", ".join(sorted({type(r).__name__ for r in layers})) or "nothing"
        raise ValueError(f"{who} got {kinds}; give a Routing, or a sequence of them, one a layer (labkit.nn.trace)")
    sizes = {(r.num_tokens, r.num_experts) for r in layers}
    if len(sizes) > 1 or layers[0].num_tokens == 0:
        said = ", ".join(f"{T} tokens × {E} experts" for T, E in sorted(sizes))
        raise ValueError(f"{who} got records of {said}; give layers of one batch with at least one token")
    return tuple(r.detach() for r in layers)


def layer_names(layers: Sequence[Routing]) -> list[str]:
    """What to call each layer: its number in the model, or its place in the sequence where it has none."""
    return [f"layer {i if r.layer is None else r.layer}" for i, r in enumerate(layers)]


def token_texts(record: Routing) -> list[str]:
    """A readable text for each token: control characters are written out, a token without a text is its position."""
    if record.tokens is None:
        return [f"#{t}" for t in range(record.num_tokens)]
    return [visible(token) for token in record.tokens]


def neighbours(record: Routing, t: int, before: int, after: int) -> tuple[str, str, str]:
    """What stands before a token, its text, and what follows: at most so many tokens of its sequence on either side.

    Tokens without texts are named by their positions, each with a space behind it.

    >>> r = Routing.of(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), tokens=tuple("abc"))
    >>> neighbours(r, 1, before=5, after=5)
    ('a', 'b', 'c')
    """
    near = range(max(0, t - before), min(record.num_tokens, t + after + 1))
    if record.sequence_T is not None:
        near = [s for s in near if record.sequence_T[s] == record.sequence_T[t]]
    text = {s: f"#{s} " if record.tokens is None else visible(record.tokens[s]) for s in near}
    return "".join(text[s] for s in near if s < t), text[t], "".join(text[s] for s in near if s > t)


def percent(share: float) -> str:
    """The share in per cent, three digits.

    >>> percent(0.12345)
    '12.3 %'
    """
    return f"{100 * share:.3g} %"


def counted(n: int, what: str) -> str:
    """How many of what.

    >>> counted(1, "tile"), counted(1200, "row")
    ('1 tile', '1,200 rows')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def visible(token: str) -> str:
    """The token with what cannot be seen made visible.

    >>> visible(" the"), visible(chr(10)), visible("")
    ('␣the', '⏎', '∅')
    """
    shown = token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) or "∅"


def evenly(count: int, limit: int) -> Tensor:
    """At most `limit` of `count` positions, evenly spaced; [n], int64. The same positions every time.

    >>> evenly(10, 4).tolist()
    [0, 3, 6, 9]
    """
    if count <= limit:
        return torch.arange(count)
    return torch.linspace(0, count - 1, limit).round().long()
