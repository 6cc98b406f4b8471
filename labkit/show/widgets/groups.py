"""Tokens in groups that a view can name: single tokens, domains, or stretches of the text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from labkit.core.routing import Routing
from labkit.show.widgets.layers import token_texts

BLOCKS = 8


@dataclass(frozen=True, eq=False)
class Groups:
    """Who belongs where.

    Args:
        names: G names.
        group_T: the group of each token; [T], int64.
        said: what the grouping leaves out, in words; empty if nothing.
    """

    names: tuple[str, ...]
    group_T: Tensor
    said: str = ""


def groups(record: Routing, limit: int = 12) -> Groups:
    """Each token by itself if there are at most `limit`, else the domains, else eight blocks of positions.

    With more than `limit` domains the largest keep their names and the others are one group.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1), tokens=("a", "b"))
    >>> groups(r).names, groups(r, limit=1).names
    (('0 a', '1 b'), ('token 0', 'token 1'))
    """
    T = record.num_tokens
    if limit >= T:
        texts = token_texts(record)
        return Groups(
            tuple(texts if record.tokens is None else (f"{t} {x}" for t, x in enumerate(texts))), torch.arange(T)
        )
    if record.domains is not None:
        return _by_domain(record.domains, limit)
    edges = [i * T // BLOCKS for i in range(BLOCKS + 1)]
    spans = [(low, high) for low, high in pairwise(edges) if high > low]
    group_T = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([high - low for low, high in spans]))
    names = (f"token {low:,}" if high - low == 1 else f"{low:,}–{high - 1:,}" for low, high in spans)
    return Groups(tuple(names), group_T, f"All {T:,} tokens are counted, in {len(spans)} blocks of positions.")


def _by_domain(domains: tuple[str, ...], limit: int) -> Groups:
    count = Counter(domains)
    names = sorted(count)
    said = ""
    if len(names) > limit:
        named = sorted(sorted(count, key=lambda name: (-count[name], name))[: limit - 1])
        others = len(names) - len(named)
        said = f"{len(named)} largest of {len(names)} domains by name; the other {others} are one group."
        names = [*named, f"{others} other domains"]
    index = {name: i for i, name in enumerate(names)}
    group_T = torch.tensor([index.get(domain, len(names) - 1) for domain in domains])
    return Groups(tuple(names), group_T, said)
