"""Latent attention: equal to transformers', the same expanded and absorbed, and a cache as small as its formula."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import models, off
from their_attention import (
    PADDINGS,
    inputs,
    padding_of,
    pairs,
    run_cached,
    run_ours,
    run_theirs,
    theirs,
    with_their_weights,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labkit.core.config import ModelConfig, YarnConfig
from labkit.core.memory import kv_cache_bytes_per_token
from labkit.nn import KVCache, LatentAttention
from labkit.nn.rope import rope_tables

RELATIVE = 1e-5
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
H, NOPE, ROPE, VALUE, RANK = 4, 6, 4, 5, 7
DIRECT = ModelConfig(
    "direct", 40, 2, 16, H, H, NOPE + ROPE, moe=None, num_dense_layers=2, d_dense=8, attention="mla", mla_kv_rank=RANK,
    mla_nope_dim=NOPE, mla_rope_dim=ROPE, mla_v_dim=VALUE, rope_interleaved=True,
)  # fmt: skip
RANKED = DIRECT.replace(
    name="ranked", mla_q_rank=6, attention_bias=True, rope_interleaved=False,
    yarn=YarnConfig(8.0, 64, mscale=1.0, mscale_all_dim=1.0),
)  # fmt: skip
CONFIGS = [DIRECT, RANKED, DIRECT.replace(name="wide values", mla_v_dim=16)]


def seeded(config: ModelConfig) -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(config, 0)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_outputs_and_gradients_equal_transformers(family: str, absorbed: bool) -> None:
    @EXAMPLES
    @given(models(family), PADDINGS, st.integers(0, 9))
    def same(config: ModelConfig, padding: str, seed: int) -> None:
        wanted, rotary = theirs(config, family, 0, seed)
        ours = with_their_weights(config, 0, wanted)
        ours.absorbed = absorbed
        (x, pull), real = inputs(config, 3, 9, seed), padding_of(padding, 3, 9)
        counts = torch.ones(3, 9, 1) if real is None else real[..., None]
        mine, his = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, target = run_ours(ours, mine, real), run_theirs(wanted, rotary, his, real, 0)
        assert off(got * counts, target * counts) < RELATIVE
        (got * counts * pull).sum().backward()
        (target * counts * pull).sum().backward()
        assert off(mine.grad, his.grad) < RELATIVE
        for name, parameter, target in pairs(ours, wanted):
            assert off(parameter.grad, target.grad) < RELATIVE, name

    same()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_absorbed_equals_expanded(config: ModelConfig) -> None:
    attention, results = seeded(config), []
    for absorbed in (False, True):
        attention.absorbed = absorbed
        attention.zero_grad()
        x = tokens(2, 9, 16).requires_grad_()
        y = run_ours(attention, x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in attention.parameters())])
    for expanded, absorbed in zip(*results, strict=True):
        assert off(absorbed, expanded) < RELATIVE


@pytest.mark.parametrize("absorbed", [None, False, True])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_pieces_with_a_cache_equal_the_whole(config: ModelConfig, padding: str, absorbed: bool | None) -> None:
    attention, x, real = seeded(config), tokens(3, 9, 16), padding_of(padding, 3, 9)
    with torch.no_grad():
        whole = run_ours(attention, x, real)
        attention.absorbed = absorbed
        cache = KVCache(config, 3, 9)
        parts = run_cached(attention, x, cache, (4, 5, 7, 8, 9), real)
    counts = slice(None) if real is None else real.bool()
    torch.testing.assert_close(parts[counts], whole[counts], rtol=1e-5, atol=1e-6)
    assert (cache.length, cache.reads) == (9, 0 + 4 + 5 + 7 + 8)


def test_the_form_is_chosen_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, used = seeded(DIRECT), []
    for form in ("_absorbed", "_expanded"):
        method = getattr(attention, form)
        monkeypatch.setattr(attention, form, lambda *args, f=form, m=method: (used.append(f), m(*args))[1])
    x, cache = tokens(1, 4, 16), KVCache(DIRECT, 1, 4)
    with torch.no_grad():
        run_cached(attention, x, cache, (2, 3))
        run_ours(attention, x[:, :1])
        run_ours(attention, x)
    assert used == ["_expanded", "_absorbed", "_expanded", "_expanded"]


def test_the_cache_holds_the_latent_and_one_rotary_key() -> None:
    attention, x, cache = seeded(RANKED), tokens(2, 5, 16), KVCache(RANKED, 2, 6)
    with torch.no_grad():
        run_cached(attention, x, cache, (5,))
        latent, key = attention.kv_down(x).split([RANK, ROPE], dim=-1)
    torch.testing.assert_close(cache.layers[0][0][:, :5], attention.kv_norm(latent).detach())
    lengths = [pair.view(2, 5, 2, -1).norm(dim=2) for pair in (cache.layers[0][1][:, :5], key)]
    torch.testing.assert_close(*lengths)  # the turn keeps every pair's length
    assert cache.bytes_per_token == kv_cache_bytes_per_token(RANKED, 4) == 2 * (RANK + ROPE) * 4


def step_flops(absorbed: bool, cached: int) -> int:
    """The products of one step after so many cached positions."""
    attention, cache = seeded(DIRECT), KVCache(DIRECT, 1, cached + 1)
    attention.absorbed = absorbed
    cache.length = cached
    tables = rope_tables(DIRECT, torch.tensor([cached]))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        attention(tokens(1, 1, 16), *tables, None, cache)
    return counter.get_total_flops()


def test_each_cached_position_costs_what_its_form_says() -> None:
    slopes = {absorbed: (step_flops(absorbed, 200) - step_flops(absorbed, 100)) // 100 for absorbed in (False, True)}
    assert slopes[True] == 2 * H * 2 * (RANK + ROPE)
    assert slopes[False] == 2 * RANK * H * (NOPE + VALUE) + 2 * H * 2 * (NOPE + ROPE)
    assert step_flops(True, 200) < step_flops(False, 200)


def test_a_cached_step_does_less_than_the_whole() -> None:
    attention, x = seeded(DIRECT), tokens(1, 32, 16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole, torch.no_grad():
        run_ours(attention, x)
    for absorbed in (False, True):
        assert 2 * step_flops(absorbed, 31) < whole.get_total_flops()


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_padding_is_never_nan(config: ModelConfig, absorbed: bool) -> None:
    attention, x, real = seeded(config), tokens(3, 9, 16).requires_grad_(), padding_of("left", 3, 9)
    attention.absorbed = absorbed
    real[0] = 0
    y = run_ours(attention, x, real)
    assert y.isfinite().all()
    (y * real[..., None]).sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    assert x.grad[real == 0].abs().max() == 0


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_bfloat16_autocast(config: ModelConfig, absorbed: bool) -> None:
    attention, x = seeded(config), tokens(2, 9, 16)
    attention.absorbed = absorbed
    want = run_ours(attention, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run_ours(attention, x)
        got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16
    assert off(got.float(), want) < 0.03
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in attention.parameters())


def test_compiles_as_one_graph() -> None:
    attention, x, tables = seeded(RANKED), tokens(2, 9, 16), rope_tables(RANKED, torch.arange(9))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *tables, None), attention(x, *tables, None))
