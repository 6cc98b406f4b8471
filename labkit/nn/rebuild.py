"""A model of another configuration out of tensors at hand: what pruning, merging and making dense end with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from labkit.core.config import ModelConfig
from labkit.core.routing import Routing
from labkit.nn.model import Transformer, filled
from labkit.nn.skeleton import skeleton


def rebuilt(model: Transformer, config: ModelConfig, changed: Mapping[str, Tensor]) -> Transformer:
    """A new model, in evaluation mode, that shares no memory with the old.

    Args:
        model: gives every tensor that is not in `changed` and that the configuration still has a place for.
        config: of the new model.
        changed: tensors by their names in the new model.
    """
    first = next((block.ffn.experts for block in model.layers if hasattr(block.ffn, "experts")), None)
    new = skeleton(config, getattr(first, "implementation", "auto"))
    old = model.state_dict()
    state = {name: changed.get(name, old.get(name)).detach().clone() for name in new.state_dict()}
    return filled(new, state)


def check_sparse(model: Transformer, who: str) -> ModelConfig:
    """The configuration. Raises ValueError unless it is a Transformer with plain sparse layers alone to change."""
    if not isinstance(model, Transformer):
        raise ValueError(
            f"{who} takes a Transformer of labkit, got {type(model).__name__}; load it with from_pretrained"
        )
    config = model.config
    if config.moe is None:
        raise ValueError(f"{who} was given a dense model; it has no experts")
    if config.num_mtp_layers:
        raise ValueError(f"{who} leaves multi-token modules out; build the model with num_mtp_layers=0 first")
    if config.moe.num_groups > 1:
        raise ValueError(f"{who}: experts are chosen in {config.moe.num_groups} groups, which would lose their shape")
    return config


def by_layer(records: Iterable[Routing], config: ModelConfig, who: str) -> dict[int, Routing]:
    """Records by their layer. Raises ValueError unless every sparse layer has exactly one, with tokens."""
    found: dict[int, Routing] = {}
    for record in records:
        if record.layer in found or record.layer not in config.sparse_layers:
            raise ValueError(
                f"{who}: layer {record.layer} is no sparse layer or comes twice; give the records of trace"
            )
        if record.num_experts != config.moe.num_experts or not record.num_tokens:
            raise ValueError(
                f"{who}: layer {record.layer} has {record.num_experts} experts, {record.num_tokens} tokens"
            )
        found[record.layer] = record
    if missing := sorted(set(config.sparse_layers) - set(found)):
        raise ValueError(f"{who}: layers {missing} have no record; give the records of trace, one for each")
    return found
