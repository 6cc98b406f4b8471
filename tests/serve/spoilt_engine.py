"""The engine of the course's model, in which one token makes the logits of its own sequence no numbers."""

from __future__ import annotations

from typing import Any

from scripted_backend import FOLDER, POISON

from labkit.serve.server.model import Model, build


def spoilt(num_blocks: int, **options: Any) -> Any:
    """The engine, in the worker's process."""
    import torch

    engine = build(Model(str(FOLDER), "cpu", num_blocks=num_blocks, **options))

    def spoil(_: Any, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded.masked_fill((inputs[0] == POISON)[..., None], torch.nan)

    engine.model.embed.register_forward_hook(spoil)
    return engine
