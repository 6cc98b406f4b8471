"""Grouped-query attention: equal to transformers', with padding, windows, sinks and caches; its backend is told."""

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
    window_of,
    with_their_weights,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from labkit.core.config import ModelConfig
from labkit.nn import Attention, KVCache, sdpa
from labkit.nn.attention import attend, backend

RELATIVE = 1e-5
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PLAIN = ModelConfig("plain", 40, 2, 16, 4, 2, 6, moe=None, num_dense_layers=2, d_dense=8)
SINKS = PLAIN.replace(name="sinks", attention_sinks=True, attention_bias=True, sliding_window=3, full_attention_every=2)
CONFIGS = [
    PLAIN, PLAIN.replace(name="heads", num_kv_heads=4), PLAIN.replace(name="normed", qk_norm="head"),
    PLAIN.replace(name="fully normed", qk_norm="full", num_kv_heads=1), SINKS,
]  # fmt: skip


def seeded(config: ModelConfig, layer: int = 0) -> Attention:
    torch.manual_seed(0)
    attention = Attention(config, layer)
    if attention.sinks is not None:
        torch.nn.init.normal_(attention.sinks)
    return attention


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly(query, key, value, mask=None, *, scale, sinks=None):
    """The definition: every product, every exponential, then a sum."""
    S, K, H = query.shape[-2], key.shape[-2], query.shape[1]
    key, value = (t.repeat_interleave(H // t.shape[1], 1) for t in (key, value))
    seen = torch.ones(S, K, dtype=torch.bool).tril(K - S) if mask is None else mask
    weights = ((query @ key.mT) * scale).masked_fill(~seen, float("-inf")).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ value / (total if sinks is None else total + sinks.exp()[None, :, None, None])


class Fused(TorchDispatchMode):
    """Remembers which fused attention ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "gpt_oss"])
def test_outputs_and_gradients_equal_transformers(family: str) -> None:
    @EXAMPLES
    @given(models(family), st.integers(0, 2), PADDINGS, st.integers(0, 9))
    def same(config: ModelConfig, layer: int, padding: str, seed: int) -> None:
        layer %= config.num_layers
        wanted, rotary = theirs(config, family, layer, seed)
        ours = with_their_weights(config, layer, wanted)
        (x, pull), real = inputs(config, 3, 9, seed), padding_of(padding, 3, 9)
        counts = torch.ones(3, 9, 1) if real is None else real[..., None]
        mine, his = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, target = run_ours(ours, mine, real), run_theirs(wanted, rotary, his, real, window_of(ours))
        assert off(got * counts, target * counts) < RELATIVE
        (got * counts * pull).sum().backward()
        (target * counts * pull).sum().backward()
        assert off(mine.grad, his.grad) < RELATIVE
        whole = torch.stack([p.grad.norm() for p in wanted.parameters()]).norm().item()
        for name, parameter, target in pairs(ours, wanted):
            # the bias of keys moves nothing, so its gradient is a rest: measured against all of them
            size = max(target.grad.norm().item(), 1e-2 * whole)
            assert (parameter.grad - target.grad).norm().item() < RELATIVE * size, name

    same()


@st.composite
def problems(draw):
    G, d, v = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 4, 7, 8])), draw(st.sampled_from([1, 5, 8, 9]))
    H, K, B = G * draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 8)), draw(st.integers(1, 2))
    S, seed = draw(st.integers(1, K)), draw(st.integers(0, 99))
    tensors = [tokens(*shape, seed=seed + i) for i, shape in enumerate([(B, H, S, d), (B, G, K, d), (B, G, K, v)])]
    mask = None
    if draw(st.booleans()):
        mask = tokens(draw(st.sampled_from([1, B])), 1, S, K, seed=seed) > 0
        mask = mask | torch.eye(K, dtype=torch.bool)[K - S :]
    sinks = tokens(H, seed=seed + 7) if draw(st.booleans()) else None
    return [t.double() for t in tensors], mask, None if sinks is None else 2 * sinks.double()


@settings(EXAMPLES, max_examples=150)
@given(problems(), st.sampled_from([0.3, 1.0]))
def test_attend_is_its_definition(problem, scale: float) -> None:
    tensors, mask, sinks = problem
    leaves = [t for t in (*tensors, sinks) if t is not None]
    results = []
    for way in (attend, plainly):
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_()
        y = way(*tensors, mask, scale=scale, sinks=sinks)
        (y * tokens(*y.shape, seed=3)).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_a_great_sink_swallows_the_values_and_a_small_one_nothing() -> None:
    query = tokens(1, 2, 5, 4)
    y = attend(query, query, query, scale=0.5, sinks=torch.tensor([40.0, -40.0]))
    assert y[0, 0].abs().max() < 1e-12
    torch.testing.assert_close(y[:, 1], attend(query, query, query, scale=0.5)[:, 1])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_pieces_with_a_cache_equal_the_whole(config: ModelConfig, layer: int, padding: str) -> None:
    attention, x, real = seeded(config, layer), tokens(3, 9, 16), padding_of(padding, 3, 9)
    with torch.no_grad():
        whole = run_ours(attention, x, real)
        cache = KVCache(config, 3, 9)
        parts = run_cached(attention, x, cache, (4, 5, 7, 8, 9), real)
    counts = slice(None) if real is None else real.bool()
    torch.testing.assert_close(parts[counts], whole[counts], rtol=1e-5, atol=1e-6)
    assert (cache.length, cache.reads) == (9, 0 + 4 + 5 + 7 + 8)


def test_a_step_reads_the_cache_and_nothing_else() -> None:
    attention, x = seeded(PLAIN), tokens(1, 4, 16)
    with torch.no_grad():
        caches = [KVCache(PLAIN, 1, 4) for _ in range(2)]
        for cache in caches:
            run_cached(attention, x[:, :3], cache, (3,))
        caches[1].layers[0][1][:, :, 1] += 1
        same, moved = (run_step(attention, x, cache) for cache in caches)
    assert not torch.allclose(same, moved)
    torch.testing.assert_close(same, run_ours(attention, x)[:, 3:])


def run_step(attention: Attention, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
    from labkit.nn.rope import rope_tables

    return attention(x[:, -1:], *rope_tables(attention.config, torch.tensor([cache.length])), None, cache)


def test_a_cached_step_does_the_work_of_one_token() -> None:
    attention, x, K = seeded(PLAIN), tokens(2, 32, 16), 32
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        cache = KVCache(PLAIN, 2, K)
        run_cached(attention, x[:, : K - 1], cache, (K - 1,))
        with FlopCounterMode(display=False) as step:
            run_step(attention, x, cache)
        with FlopCounterMode(display=False) as whole:
            run_ours(attention, x)
    matrices = sum(p.numel() for p in attention.parameters())
    assert step.get_total_flops() == 2 * 2 * (matrices + 4 * K * 2 * 6)
    assert whole.get_total_flops() == K * step.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("side", ["left", "right", "all of a row"])
def test_padding_is_never_nan(config: ModelConfig, side: str) -> None:
    attention, x = seeded(config), tokens(3, 9, 16).requires_grad_()
    real = padding_of("left" if side == "left" else "right", 3, 9)
    if side.startswith("all"):
        real[0] = 0
    y = run_ours(attention, x, real)
    assert y.isfinite().all()
    (y * real[..., None]).sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    assert x.grad[real == 0].abs().max() == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_bfloat16_autocast(config: ModelConfig, padding: str) -> None:
    attention, x, real = seeded(config), tokens(3, 9, 16), padding_of(padding, 3, 9)
    want = run_ours(attention, x, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run_ours(attention, x, real)
        got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16
    assert off(got.float(), want) < 0.03
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("config", [PLAIN, SINKS], ids=lambda c: c.name)
def test_compiles_as_one_graph(config: ModelConfig) -> None:
    attention, x = seeded(config, 1), tokens(2, 9, 16)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    results = []
    for layer in (attention, compiled):
        attention.zero_grad()
        y = layer(x, *tables(9), None)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in attention.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def tables(S: int) -> tuple[torch.Tensor, torch.Tensor]:
    from labkit.nn.rope import rope_tables

    return rope_tables(PLAIN, torch.arange(S))


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("S", "G", "width"), [(8, 4, 8), (8, 2, 8), (1, 2, 8), (3, 2, 8), (8, 2, 5), (8, 2, 12)])
def test_the_backend_told_is_the_one_that_runs(S: int, G: int, width: int, masked: bool, sinks: bool) -> None:
    given = tokens(1, 4, S, 8).requires_grad_(), tokens(1, G, 8, 8), tokens(1, G, 8, width)
    mask = torch.ones(1, 1, S, 8, dtype=torch.bool) if masked else None
    logits = torch.zeros(4, requires_grad=True) if sinks else None
    with Fused() as ran:
        attend(*given, mask, scale=1.0, sinks=logits)
    assert ran.names == ["aten._scaled_dot_product_flash_attention_for_cpu.default"]
    told = backend(*given, mask, sinks=logits)
    assert told.name == "flash"
    assert "on cpu" in told.reason
    with sdpa_kernel(SDPBackend.MATH), Fused() as ran:
        attend(*given, mask, scale=1.0, sinks=logits)
        assert backend(*given, mask, sinks=logits).name == "math"
    assert ran.names == []


def test_one_query_reads_shared_keys_in_place() -> None:
    query, key = tokens(2, 6, 1, 8), tokens(2, 2, 9, 8)
    call = sdpa.prepare(query, key, key, None, scale=1.0, sinks=None)
    assert (call.key.data_ptr(), call.value.shape) == (key.data_ptr(), key.shape)
    assert (call.query.shape, call.grouped) == ((2, 2, 3, 8), False)


@pytest.mark.parametrize("masked", [False, True])
def test_shared_keys_may_be_copied(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, mask = tokens(2, 6, 5, 8), tokens(2, 2, 5, 8), torch.ones(1, 1, 5, 5).tril(1).bool()
    want = attend(query, key, key, mask if masked else None, scale=0.3)
    in_place = sdpa.prepare(query, key, key, None, scale=1.0, sinks=None)
    assert (in_place.key.data_ptr(), in_place.grouped) == (key.data_ptr(), True)
    monkeypatch.setattr(sdpa, "_takes_groups", lambda *_: False)
    assert sdpa.prepare(query, key, key, None, scale=1.0, sinks=None).key.shape == query.shape
    torch.testing.assert_close(attend(query, key, key, mask if masked else None, scale=0.3), want)


X = torch.zeros(2, 4, 3, 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: attend(X[0], X, X, scale=1.0), r"expected \[B, H, S, d\]"),
        (lambda: attend(X, X[..., :4], X, scale=1.0), "have shapes"),
        (lambda: attend(X, X[:, :3], X[:, :3], scale=1.0), "G a divisor of H"),
        (lambda: attend(X, X, X[:, :, :2], scale=1.0), "have shapes"),
        (lambda: attend(X, X[:, :, :2], X[:, :, :2], scale=1.0), "3 queries and 2 keys"),
        (lambda: attend(X, X, X, torch.zeros(1, 1, 3, 3), scale=1.0), "expected bool"),
        (lambda: attend(X, X, X, torch.ones(3, 3).bool(), scale=1.0), r"\[2 or 1, 1, 3, 3\]"),
        (lambda: attend(X, X, X, scale=1.0, sinks=torch.zeros(3)), r"expected \(4,\)"),
        (lambda: backend(X, X, X, torch.ones(1, 4, 3, 3).bool()), "expected bool"),
    ],
)
def test_bad_input(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
