"""A tiny model, a source of batches kept in memory, and a configuration: what the tests of training share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn.model import Transformer
from labkit.train import data
from labkit.train.settings import TrainConfig

V = data.VOCAB_SIZE


@dataclass(frozen=True, eq=False)
class Batch:
    """What a source gives."""

    ids_BS: Tensor
    labels_BS: Tensor
    domains: tuple[str, ...]


class Source:
    """Random windows of real text; the position is a count."""

    def __init__(self, seed: int = 0, split: str = "train") -> None:
        self.seed, self.split, self.count = seed, split, 0

    def next(self, batch: int, sequence: int) -> Batch:
        drawn = data.sample(
            text(), num_sequences=batch, sequence_length=sequence, seed=self.seed * 10**6 + self.count, split=self.split
        )
        self.count += 1
        return Batch(drawn.ids_BS, drawn.ids_BS.clone(), drawn.domains)

    def state(self) -> dict:
        return {"count": self.count}

    def load(self, state: dict) -> None:
        self.count = state["count"]


@functools.cache
def text() -> data.Corpus:
    return data.corpus(bytes_per_domain=20_000)


def model_config(**changes) -> ModelConfig:
    moe = MoEConfig(
        d_model=16, d_expert=8, num_experts=4, top_k=2, score_fn="sigmoid", selection_bias=True, num_shared_experts=1
    )
    fields = {
        "name": "small", "vocab_size": V, "num_layers": 2, "d_model": 16, "num_heads": 2, "num_kv_heads": 1,
        "head_dim": 8, "moe": moe, "num_dense_layers": 1, "d_dense": 24,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def model(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(model_config(**changes))


def config(**changes) -> TrainConfig:
    fields = {
        "steps": 6, "batch": 4, "sequence": 24, "learning_rate": 3e-3, "warmup": 2, "log_every": 1, "device": "cpu",
        "progress": "quiet",
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


def told(result) -> list[dict]:
    """A run's log without what differs from run to run: speed and memory."""
    return [{k: v for k, v in row.items() if k not in ("tokens_per_s", "memory_bytes")} for row in result.rows]
