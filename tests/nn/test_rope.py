"""Rotary positions: tables, turns and scale equal transformers', stretched or not; and what a rotation must keep."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import models, off
from their_attention import theirs

from labkit.core.config import ModelConfig, YarnConfig
from labkit.nn.rope import attention_factor, inverse_frequencies, rope_tables, rotate, softmax_scale

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GQA = ModelConfig("gqa", 40, 1, 16, 4, 2, 16, moe=None, num_dense_layers=1, d_dense=8)
YARN = YarnConfig(8.0, 64)


@st.composite
def yarns(draw) -> YarnConfig:
    weights = st.sampled_from([0.0, 0.5, 0.707, 1.0])
    return YarnConfig(
        factor=draw(st.sampled_from([0.5, 1.0, 4.0, 40.0])),
        original_context=draw(st.sampled_from([4, 64, 1000, 4096])),
        beta_fast=draw(st.sampled_from([8.0, 32.0])), beta_slow=draw(st.sampled_from([1.0, 2.5])),
        mscale=draw(weights), mscale_all_dim=draw(weights), truncate=draw(st.booleans()),
        attention_factor=draw(st.sampled_from([0.0, 0.0, 1.3])),
    )  # fmt: skip


def wide(config: ModelConfig, theta: float, yarn: YarnConfig | None) -> ModelConfig:
    """The same model with heads wide enough that the ramp has several pairs to cross."""
    widths = {"mla_rope_dim": 32, "head_dim": 32 + config.mla_nope_dim} if config.attention == "mla" else {}
    return config.replace(**widths or {"head_dim": 32}, rope_theta=theta, yarn=yarn, max_context=8192)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_tables_turns_and_scale_equal_transformers(family: str) -> None:
    @EXAMPLES
    @given(models(family), st.none() | yarns(), st.sampled_from([1e2, 1e4, 1.5e5]), st.integers(0, 9))
    def same(config: ModelConfig, yarn: YarnConfig | None, theta: float, seed: int) -> None:
        config = wide(config, theta, None if family == "mixtral" else yarn)
        module, rotary = theirs(config, family, 0, seed)
        positions = torch.randint(300, (2, 5), generator=torch.Generator().manual_seed(seed))
        x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(seed))
        cos, sin = rope_tables(config, positions)
        torch.testing.assert_close((cos, sin), their_tables(family, rotary, x, positions), rtol=1e-5, atol=5e-5)
        assert off(turned(x, config), their_turned(family, module, rotary, x)) < 1e-5
        assert softmax_scale(config) == pytest.approx(module.scaling, rel=1e-12)

    same()


def their_tables(family: str, rotary, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = rotary(x, positions)
    if family == "deepseek_v2":
        return found.real, found.imag
    return tuple(table[..., :16] for table in found)


def turned(x: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """x at positions 0 to 4; pairs as transformers leaves them, which sorts interleaved ones into halves for V3."""
    return rotate(x, *rope_tables(config, torch.arange(5)), config.rope_interleaved)


def their_turned(family: str, module, rotary, x: torch.Tensor) -> torch.Tensor:
    import importlib

    package = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    found = rotary(x, torch.arange(5)[None].expand(2, 5))
    if family == "deepseek_v2":
        return package.apply_rotary_emb(x, x, found)[0]
    if family == "deepseek_v3" and module.config.rope_interleave:
        halves = package.apply_rotary_pos_emb_interleave(x, x, *found)[0]
        return halves.unflatten(-1, (2, -1)).mT.flatten(-2)
    return package.apply_rotary_pos_emb(x, x, *found)[0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_alone(interleaved: bool) -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = []
    for start in (0, 3, 50):
        tables = [rope_tables(GQA, torch.tensor([[p]]), torch.float64) for p in (start + 7, start)]
        turned = [rotate(t, *table, interleaved) for t, table in zip((query, key), tables, strict=True)]
        products.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(products[1:], [products[0]] * 2, rtol=1e-4, atol=1e-5)
    assert abs(products[0] - (query * key).sum()) > 0.01


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turn_keeps_lengths_and_position_zero_does_nothing(interleaved: bool) -> None:
    x = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    y = rotate(x, *rope_tables(GQA, torch.arange(5)), interleaved)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(y[:, :, 0], x[:, :, 0])
    pairs = (lambda t: t.unflatten(-1, (8, 2))) if interleaved else (lambda t: t.unflatten(-1, (2, 8)).mT)
    torch.testing.assert_close(pairs(y).norm(dim=-1), pairs(x).norm(dim=-1))


def test_the_stretch_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, stretched = inverse_frequencies(GQA), inverse_frequencies(GQA.replace(yarn=YARN))
    turns = plain * YARN.original_context / (2 * torch.pi)
    assert torch.equal(stretched[turns > 32], plain[turns > 32])
    torch.testing.assert_close(stretched[turns < 0.5], plain[turns < 0.5] / 8)
    ratio = plain / stretched
    assert ((ratio >= 1 - 1e-6) & (ratio <= 8 + 1e-5)).all()
    assert ratio.diff().ge(-1e-5).all()


@pytest.mark.parametrize(
    ("yarn", "want"),
    [
        (None, 1.0),
        (YARN, 0.1 * 2.0794415 + 1),
        (YarnConfig(1.0, 64), 1.0),
        (YarnConfig(8.0, 64, attention_factor=1.5, mscale=1.0, mscale_all_dim=0.5), 1.5),
        (YarnConfig(8.0, 64, mscale=1.0, mscale_all_dim=1.0), 1.0),
        (YarnConfig(8.0, 64, mscale=0.5), 0.1 * 2.0794415 + 1),
    ],
)
def test_the_attention_factor(yarn: YarnConfig | None, want: float) -> None:
    assert attention_factor(yarn) == pytest.approx(want)
    cos, sin = rope_tables(GQA.replace(yarn=yarn), torch.arange(5))
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, want))


def test_angles_are_float32_whatever_the_tables_are() -> None:
    positions = torch.tensor([[30_001, 30_002]])
    wide, narrow = (rope_tables(GQA, positions, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert narrow[0].dtype == torch.bfloat16
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(wide, narrow, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(wide, rope_tables(GQA, positions), strict=True))


def test_positions_of_one_row_serve_all() -> None:
    row, column = torch.arange(4), torch.arange(4)[None]
    assert all(torch.equal(a, b) for a, b in zip(rope_tables(GQA, row), rope_tables(GQA, column), strict=True))
    assert rope_tables(GQA, row)[0].shape == (1, 4, 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rope_tables(GQA, torch.zeros(1, 4)), "give integers"),
        (lambda: rope_tables(GQA, torch.zeros(1, 1, 4, dtype=torch.int64)), "give integers"),
        (lambda: rope_tables(GQA, torch.ones(1, 4, dtype=torch.bool)), "give integers"),
        (lambda: rotate(torch.zeros(1, 1, 4, 8), *rope_tables(GQA, torch.arange(4))), "8 dimensions to turn"),
    ],
)
def test_bad_input(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
