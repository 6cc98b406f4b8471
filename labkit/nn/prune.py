"""Leaving experts out for good: the most used stay, router rows are cut, and the model that is left is a real one.

What is left decides and computes as the whole model with those experts taken out of its routers (`nn.ablate`). Left out
on purpose: importance that needs the experts' outputs, such as REAP's (Lasby et al. 2025, arXiv 2510.13999), which no
`Routing` records.

Legend: E experts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from labkit.core.routing import Routing
from labkit.nn.model import Transformer
from labkit.nn.rebuild import by_layer, check_sparse, rebuilt

MEASURES = ("tokens", "scores")


def use(record: Routing, by: Literal["tokens", "scores"] = "tokens") -> Tensor:
    """How much each expert is used, [E] float64, summing to one.

    Args:
        record: of text as the model will read; by: "tokens" counts choices, "scores" adds up what they weighed.

    Raises ValueError for another measure.

    >>> r = Routing.of(torch.zeros(2, 3), torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    >>> use(r).tolist(), [round(share, 2) for share in use(r, "scores").tolist()]
    ([0.5, 0.25, 0.25], [0.7, 0.25, 0.05])
    """
    if by not in MEASURES:
        raise ValueError(f"by is {by!r}; choose one of {', '.join(MEASURES)}")
    if by == "tokens":
        used_E = record.tokens_per_expert_E.double()
    else:
        used_E = torch.zeros(record.num_experts, dtype=torch.float64, device=record.topk_ids_TK.device)
        used_E.index_add_(0, record.topk_ids_TK.flatten(), record.topk_scores_TK.detach().double().flatten())
    return used_E / used_E.sum()


def most_used(used_E: Tensor, number: int) -> tuple[int, ...]:
    """The experts with the largest shares, in the order of their numbers; the lower number wins between equals.

    Raises ValueError unless 1 ≤ number ≤ E.

    >>> most_used(torch.tensor([0.1, 0.4, 0.1, 0.4]), 3)
    (0, 1, 3)
    """
    if not 1 <= number <= len(used_E):
        raise ValueError(f"number is {number}; give 1 to {len(used_E)}, the number of experts")
    order = torch.sort(used_E, descending=True, stable=True).indices
    return tuple(sorted(order[:number].tolist()))


def keep_most_used(records: Iterable[Routing], number: int, by: str = "tokens") -> dict[int, tuple[int, ...]]:
    """For each record's layer the experts to keep: what `prune` takes."""
    return {record.layer: most_used(use(record, by), number) for record in records}


def prune(model: Transformer, keep: Mapping[int, Sequence[int]], *, top_k: int | None = None) -> Transformer:
    """A model with these experts alone, in evaluation mode; the old one stays as it is.

    Args:
        model: of labkit.
        keep: for every sparse layer the numbers of its experts that stay, as many in each; their order is kept.
        top_k: of the new model; None: as before.

    Raises ValueError for layers or experts that are not there, and for fewer experts than `top_k`.

    >>> from labkit.core.config import ModelConfig, MoEConfig
    >>> moe = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2)
    >>> model = Transformer(ModelConfig("tiny", 32, 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=moe))
    >>> prune(model, {0: (0, 3), 1: (1, 2)}).config.moe.num_experts
    2
    """
    config = check_sparse(model, "prune")
    E = config.moe.num_experts
    if set(keep) != set(config.sparse_layers):
        raise ValueError(f"keep names layers {sorted(keep)}; the sparse layers are {list(config.sparse_layers)}")
    sizes = {len(some) for some in keep.values()}
    if len(sizes) > 1:
        raise ValueError(f"keep leaves {sorted(sizes)} experts in different layers; a model has as many in each")
    for layer, some in keep.items():
        if len(set(some)) != len(some) or not all(0 <= e < E for e in some):
            raise ValueError(f"keep[{layer}] is {tuple(some)}; give different experts from 0 to {E - 1}")
    (left,) = sizes
    moe = config.moe.replace(num_experts=left, top_k=config.moe.top_k if top_k is None else top_k)
    changed = {}
    for name, tensor in model.state_dict().items():
        place = name.split(".")
        if ".ffn.router." in name or ".ffn.experts." in name:
            kept = torch.tensor(list(keep[int(place[1])]), device=tensor.device)
            changed[name] = tensor.index_select(0, kept)
    return rebuilt(model, config.replace(moe=moe), changed)


def prune_by_use(
    model: Transformer, records: Iterable[Routing], number: int, *, by: str = "tokens", top_k: int | None = None
) -> Transformer:
    """`prune` to the `number` most used experts of every layer, as these records (`nn.trace`) tell."""
    found = by_layer(records, check_sparse(model, "prune"), "prune")
    return prune(model, keep_most_used(found.values(), number, by), top_k=top_k)
