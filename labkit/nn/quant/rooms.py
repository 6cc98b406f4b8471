"""Which room of a model a tensor belongs to, told by where it stands: for our models and for those of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from labkit.nn.quant.modules import QuantEmbedding

ROOMS = ("embedding", "attention", "router", "experts", "shared experts", "feed-forward", "norms", "head", "other")
QUANTISED = ("attention", "experts", "shared experts", "feed-forward")
"""What `quantize` packs unless told otherwise: nearly all bytes, and nothing that decides or normalises."""

_ROUTER_CLASS = re.compile(r"Router|TopK|Gating$|MoEV1Gate|MoEGate")
_ROUTER_NAMES = {"router", "gate", "moe_statics", "shared_expert_gate"}
_HEAD_NAMES = {"lm_head", "head", "embed_out"}
_MIXER = re.compile(r"attn|attention|mamba|mixer")
_FEED_FORWARD = {"mlp", "feed_forward", "ffn", "block_sparse_moe"}


def room_of(model: nn.Module, name: str) -> str:
    """The room of a tensor, by its full name in the model.

    >>> from labkit.nn import MoE
    >>> from labkit.core.config import MoEConfig
    >>> layer = MoE(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2, num_shared_experts=1))
    >>> [room_of(layer, name) for name, _ in layer.named_parameters()]
    ['router', 'experts', 'experts', 'shared experts', 'shared experts']
    """
    words = name.split(".")
    owners = list(_along(model, words))
    kinds = [type(owner).__name__ for owner in owners]
    if any(isinstance(owner, (nn.Embedding, QuantEmbedding)) for owner in owners):
        return "embedding"
    if _ROUTER_NAMES & set(words[:-1]) or any(_ROUTER_CLASS.search(kind) for kind in kinds[1:]):
        return "router"
    if "Norm" in kinds[-1]:
        return "norms"
    if "experts" in words:
        return "experts"
    if any(word.startswith("shared") for word in words):
        return "shared experts"
    if _HEAD_NAMES & set(words):
        return "head"
    if any(_MIXER.search(word) for word in words[:-1]):
        return "attention"
    return "feed-forward" if _FEED_FORWARD & set(words) else "other"


def sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of memory of every tensor, by name; memory that several tensors share counts once, at the first of them.

    Buffers count too, also those that are not saved.
    """
    seen: set[tuple[str, int]] = set()
    found: dict[str, int] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        key = storage_key(tensor)
        found[name] = 0 if key in seen else tensor.untyped_storage().nbytes()
        seen.add(key)
    return found


def storage_key(tensor: Tensor) -> tuple[str, int]:
    """What tells whether two tensors share memory."""
    storage = tensor.untyped_storage()
    return (str(tensor.device), storage.data_ptr() or id(tensor))


def _along(model: nn.Module, words: list[str]) -> Iterator[nn.Module]:
    module = model
    yield module
    for word in words[:-1]:
        module = getattr(module, word)
        yield module
