"""Lab 05's references, put together, are the layers of `labkit.nn` and of transformers; cached steps change nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.core.config import ModelConfig
from labkit.core.memory import kv_cache_bytes, kv_cache_bytes_per_token
from labkit.core.presets import PRESETS
from labkit.course import labs
from labkit.nn.attention import LatentAttention
from labkit.nn.cache import KVCache
from labkit.nn.rope import rope_tables, rotate

EXERCISES = {exercise.name: exercise for exercise in labs.lab("05").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
TINY = ModelConfig(
    name="tiny", vocab_size=7, num_layers=1, d_model=24, num_heads=3, num_kv_heads=3, head_dim=10, moe=None,
    num_dense_layers=1, d_dense=8, attention="mla", mla_kv_rank=12, mla_nope_dim=6, mla_rope_dim=4, mla_v_dim=5,
    rope_interleaved=True,
)  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent_layer(seed: int = 0) -> LatentAttention:
    torch.manual_seed(seed)
    layer = LatentAttention(TINY, 0)
    torch.nn.init.normal_(layer.kv_norm.weight, 1.0, 0.3)
    return layer


def weights_of(layer: LatentAttention) -> tuple[torch.Tensor, ...]:
    up = layer.kv_up.weight.unflatten(0, (TINY.num_heads, -1))
    query = layer.query.weight.unflatten(0, (TINY.num_heads, -1))
    return query, layer.kv_down.weight, layer.kv_norm.weight, up


# --------------------------------------------------------------------------------------------------------------- rope


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_the_rotation_of_the_house(interleaved):
    config = TINY.replace(mla_rope_dim=8, head_dim=14, rope_theta=300.0)
    x, positions = normal(1, 2, 3, 5, 8), torch.tensor([[0, 0, 1, 2, 3], [9, 10, 11, 12, 13]])
    theirs = rotate(x, *rope_tables(config, positions), interleaved)
    torch.testing.assert_close(PART["rope"](x, positions, 300.0, interleaved), theirs)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shift", [1, 137])
def test_a_score_depends_on_the_distance_alone(interleaved, shift):
    q, k = normal(2, 1, 2, 6, 16), normal(3, 1, 2, 6, 16)
    scores = [
        PART["rope"](q, at, interleaved=interleaved) @ PART["rope"](k, at, interleaved=interleaved).mT
        for at in (torch.arange(6)[None], torch.arange(shift, 6 + shift)[None])
    ]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- cache_bytes


@pytest.mark.parametrize("name", PRESETS)
def test_cache_bytes_are_those_of_the_published_models(name):
    m = PRESETS[name]
    sizes = {
        "num_kv_heads": m.num_kv_heads, "kv_rank": m.mla_kv_rank, "rope_dim": m.mla_rope_dim,
        "window": m.sliding_window, "window_layers": m.num_window_layers,
    }  # fmt: skip
    given = (m.attention, m.num_layers, m.num_heads, m.head_dim)
    assert PART["cache_bytes"](*given, 1, **sizes) == kv_cache_bytes_per_token(m)
    assert PART["cache_bytes"](*given, 5000, **sizes) == kv_cache_bytes(m, 1, 5000)


@pytest.mark.parametrize("bytes_per_value", [2, 4])
def test_cache_bytes_are_the_bytes_of_tensors(bytes_per_value):
    dtype = {2: torch.bfloat16, 4: torch.float32}[bytes_per_value]
    cache = KVCache(TINY, batch=1, capacity=9, dtype=dtype)
    sizes = {"kv_rank": TINY.mla_kv_rank, "rope_dim": TINY.mla_rope_dim, "bytes_per_value": bytes_per_value}
    assert PART["cache_bytes"]("mla", 1, 3, 10, 9, **sizes) == sum(t.nbytes for t in cache.layers[0]) == cache.nbytes


# --------------------------------------------------------------------------------------------------------------- mask


@pytest.mark.parametrize("S", [7, 3, 1])
@pytest.mark.parametrize("window", [0, 2])
def test_padded_rows_attend_as_they_do_alone(S, window):
    q, k, v = normal(4, 2, 2, S, 4), normal(5, 2, 2, 7, 4), normal(6, 2, 2, 7, 4)
    real = torch.tensor([[False, False, True, True, True, True, True], [True] * 7])
    seen = PART["mask"](real, S, window)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert not y.isnan().any()
    for row, first in ((0, 2), (1, 0)):
        own = min(S, 7 - first)
        alone = PART["mask"](torch.ones(1, 7 - first, dtype=torch.bool), own, window)
        kept = [t[row : row + 1, :, -own if t is q else first :] for t in (q, k, v)]
        torch.testing.assert_close(y[row : row + 1, :, -own:], F.scaled_dot_product_attention(*kept, attn_mask=alone))


def test_without_padding_it_is_torchs_causal_attention():
    q, k, v = (normal(seed, 2, 2, 6, 4) for seed in (7, 8, 9))
    seen = PART["mask"](torch.ones(2, 6, dtype=torch.bool), 6)
    ours, theirs = (
        F.scaled_dot_product_attention(q, k, v, **how) for how in ({"attn_mask": seen}, {"is_causal": True})
    )
    torch.testing.assert_close(ours, theirs)


def test_an_empty_row_is_what_the_mask_avoids():
    real = torch.tensor([[False, True, True]])
    assert PART["mask"](real, 3).any(-1).all()
    bare = next(m.like for m in EXERCISES["mask"].mistakes if m.name == "empty_rows")(real, 3)
    assert not bare.any(-1).all()


# ----------------------------------------------------------------------------------------------------- mla and absorb


def test_mla_is_the_layer_of_the_house():
    layer, x, at = latent_layer(), normal(10, 2, 6, 24), torch.arange(6)[None].expand(2, -1)
    with torch.no_grad():
        y_BHSv, latent, rotary = PART["mla"](x, *weights_of(layer), at)
        cache = KVCache(TINY, batch=2, capacity=6)
        theirs = layer(x, *rope_tables(TINY, at), None, cache)
    ours = layer.output(y_BHSv.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close((latent, rotary), cache.layers[0])


def test_a_step_on_the_latents_is_the_last_row_of_the_whole():
    layer, x, at = latent_layer(1), normal(11, 2, 6, 24), torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])
    query, down, norm, up = (w.detach() for w in weights_of(layer))
    y_BHSv, latent, rotary = PART["mla"](x, query, down, norm, up, at)
    last = torch.einsum("bD,hdD->bhd", x[:, -1], query)
    turned = PART["rope"](last[:, :, None, 6:], at[:, -1:], interleaved=True)[:, :, 0]
    seen = torch.ones(2, 6, dtype=torch.bool)
    y, folded, read = PART["absorb"](torch.cat([last[..., :6], turned], dim=-1), latent, rotary, up, seen)
    torch.testing.assert_close(y, y_BHSv[:, :, -1], rtol=1e-4, atol=1e-5)
    assert folded.shape == read.shape == (2, 3, 12)


# --------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12, 13)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("rope", "always_halves"),
        ("rope", "half_exponent"),
        ("rope", "backwards"),
        ("cache_bytes", "latent_twice"),
        ("mask", "window_wide"),
        ("mask", "from_the_corner"),
        ("mla", "by_halves"),
        ("mla", "norm_missing"),
        ("mla", "scale_of_nope"),
        ("absorb", "scale_of_the_latent"),
        ("absorb", "transposed"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_no_case_of_this_lab_is_dropped_for_another():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            assert [c.label for c in exercise.inputs((seed,))] == [c.label for c in exercise.cases(seed)]
