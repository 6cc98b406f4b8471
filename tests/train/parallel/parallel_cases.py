"""Layers and tokens that are hard to share out: drawn from a seed, and the ugly ones by hand."""

from __future__ import annotations

import random

import torch
from parallel_jobs import Case

from labkit.core.config import MoEConfig
from labkit.nn import MoE

E = 8
FAR = 100.0  # a selection bias that no score outweighs


def make(
    name: str,
    tokens: tuple[int, ...],
    *,
    seed: int = 0,
    bias: dict[int, float] | None = None,
    dtype: torch.dtype = torch.float32,
    options: dict | None = None,
    **settings,
) -> Case:
    """A layer of 8 experts; `tokens` says how many each rank has, `bias` moves the choice of single experts."""
    config = MoEConfig(
        **{"d_model": 16, "d_expert": 8, "num_experts": E, "top_k": 2, "selection_bias": True} | settings
    )
    draw = torch.Generator().manual_seed(seed)
    layer = MoE(config).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=draw)
    for expert, value in (bias or {}).items():
        layer.router.expert_bias_E[expert] = value
    x, grad = (
        tuple(torch.randn(n, config.d_model, generator=draw, dtype=torch.float32).to(dtype) for n in tokens)
        for _ in range(2)
    )
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    return Case(name, config, state, x, grad, options or {}, dtype)


def drawn(ranks: int, number: int) -> list[Case]:
    """Random layers with random numbers of tokens, among them none."""
    found = []
    for seed in range(number):
        rng = random.Random(f"{ranks}/{seed}")
        tokens = tuple(rng.choice([0, 1, 2, 7, 12]) for _ in range(ranks))
        grouped = rng.random() < 0.3
        settings = {
            "top_k": rng.choice([1, 2, 4]), "num_shared_experts": rng.choice([0, 1, 2]),
            "score_fn": rng.choice(["softmax", "sigmoid"]), "norm_topk": rng.random() < 0.5,
            "expert_bias": rng.random() < 0.3, "num_groups": 4 if grouped else 1, "top_groups": 2 if grouped else 1,
        }  # fmt: skip
        bias = {rng.randrange(E): rng.choice([-FAR, FAR])} if rng.random() < 0.5 else {}
        found.append(
            make(f"drawn {seed}", tokens, seed=seed, bias=bias, options={"overlap": rng.random() < 0.5}, **settings)
        )
    return found


def ugly(ranks: int) -> list[Case]:
    """The corners: an expert without tokens, one with all, ranks without tokens, nothing at all."""
    even = (6,) * ranks
    one = {"top_k": 1}
    return [
        make("an expert without tokens", even, bias={3: -FAR}),
        make("an expert with all", even, bias={5: FAR}),
        make("all to one expert and no other", even, bias={5: FAR}, **one),
        make("uneven", tuple(3 * r + 1 for r in range(ranks))),
        make("a rank without tokens", (0, *even[1:])),
        make("one rank with all tokens", (*(0,) * (ranks - 1), 9), num_shared_experts=1),
        make("no tokens at all", (0,) * ranks, num_shared_experts=1),
        make("every expert for every token", even, top_k=E),
        make("float64", even, dtype=torch.float64),
    ]
