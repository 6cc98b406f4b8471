"""The cache: as large as its formula, bounded, and honest about what it handed back."""

import pytest
import torch

from labkit.core.config import ModelConfig
from labkit.core.memory import kv_cache_bytes, kv_cache_bytes_per_token
from labkit.core.presets import preset
from labkit.nn import KVCache

GQA = ModelConfig("gqa", 40, 3, 16, 4, 2, 6, moe=None, num_dense_layers=3, d_dense=8)
MLA = GQA.replace(
    name="mla", attention="mla", num_kv_heads=4, head_dim=10, mla_kv_rank=7, mla_nope_dim=6, mla_rope_dim=4, mla_v_dim=5
)


def new(cache: KVCache, S: int, fill: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((*t.shape[:-2], S, t.shape[-1]), fill) for t in cache.layers[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [GQA, MLA, *map(preset, ("olmoe-1b-7b", "deepseek-v3", "gpt-oss-20b"))])
def test_bytes_equal_the_formula(model: ModelConfig, dtype: torch.dtype) -> None:
    cache = KVCache(model, 2, 3, dtype=dtype)
    measured = sum(t.numel() * t.element_size() for kept in cache.layers for t in kept)
    assert cache.bytes_per_token == kv_cache_bytes_per_token(model, dtype.itemsize)
    assert cache.nbytes == measured == kv_cache_bytes(model, 2, 3, 8 * dtype.itemsize)


@pytest.mark.parametrize("model", [GQA, MLA], ids=lambda m: m.name)
def test_what_is_written_comes_back_in_order(model: ModelConfig) -> None:
    cache = KVCache(model, 2, 6)
    for start, S in ((0, 3), (3, 1), (4, 2)):
        for layer in range(3):
            got = cache.update(layer, *new(cache, S, 10 * layer + start))
            for tensor in got:
                assert tensor.shape[-2] == start + S
                assert tensor[..., start:, :].eq(10 * layer + start).all()
                assert tensor[..., : min(start, 3), :].eq(10 * layer).all()
        cache.advance(S)
    assert cache.length == 6
    assert cache.reads == 3 * (0 + 3 + 4)


def test_it_is_never_moved_and_keeps_its_dtype() -> None:
    cache = KVCache(GQA, 1, 4, dtype=torch.bfloat16)
    places = [t.data_ptr() for kept in cache.layers for t in kept]
    keys, values = cache.update(0, *new(cache, 2, 0.3))
    assert keys.dtype == values.dtype == torch.bfloat16
    assert (keys.data_ptr(), values.data_ptr()) == tuple(places[:2])
    assert places == [t.data_ptr() for kept in cache.layers for t in kept]


def test_cut_forgets_the_end_only() -> None:
    cache = KVCache(GQA, 1, 4)
    cache.update(0, *new(cache, 4, 1.0))
    cache.advance(4)
    cache.cut(2)
    keys, _ = cache.update(0, *new(cache, 1, 2.0))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="give 0 to 2"):
        cache.cut(3)


def fresh() -> KVCache:
    cache = KVCache(GQA, 2, 4)
    cache.update(0, *new(cache, 3))
    cache.advance(3)
    return cache


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fresh().update(0, *new(fresh(), 2)), "holds 4 positions and 3 are filled; 2 more do not fit"),
        (lambda: fresh().update(3, *new(fresh(), 1)), "layers 0 to 2"),
        (lambda: fresh().update(-1, *new(fresh(), 1)), "layers 0 to 2"),
        (lambda: fresh().update(0, *(t[:1] for t in new(fresh(), 1))), "is it of this model and batch"),
        (lambda: fresh().update(0, new(fresh(), 1)[0], new(fresh(), 1)[0][..., :5]), "is it of this model and batch"),
        (lambda: fresh().update(0, *new(KVCache(MLA, 2, 4), 1)), "is it of this model and batch"),
        (lambda: KVCache(GQA, 0, 4), "batch is 0"),
        (lambda: KVCache(GQA, 1, 0), "capacity 0"),
        (lambda: fresh().cut(-1), "give 0 to 3"),
    ],
)
def test_bad_input(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_a_refused_update_changes_nothing() -> None:
    cache = fresh()
    before = [t.clone() for kept in cache.layers for t in kept], cache.reads
    with pytest.raises(ValueError, match="2 more"):
        cache.update(0, *new(cache, 2, 9.0))
    with pytest.raises(ValueError, match="was given"):
        cache.update(0, new(cache, 1, 9.0)[0], new(cache, 1)[0][..., :5])
    assert all(torch.equal(a, b) for a, b in zip(before[0], (t for kept in cache.layers for t in kept), strict=True))
    assert (cache.length, cache.reads) == (3, before[1])
