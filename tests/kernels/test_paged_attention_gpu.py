"""Paged attention on a GPU, in the shapes of real models: close to float64, the same bits twice, in a graph."""

import pytest
import torch
from paged_batches import batch, draw

from labkit.kernels.paged_attention import attend, choose, force, write
from labkit.kernels.paged_decode import decode
from labkit.kernels.paged_layout import Layout

pytestmark = pytest.mark.gpu
LIMIT = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
SHAPES = {  # H, G, d, of which no value, window, sinks
    "olmoe": (16, 16, 128, 0, 0, False),
    "qwen3": (32, 4, 128, 0, 0, False),
    "deepseek-v2-lite": (16, 1, 576, 64, 0, False),
    "deepseek-v3": (128, 1, 576, 64, 0, False),
    "gpt-oss": (64, 8, 64, 0, 128, True),
    "odd": (6, 2, 80, 0, 300, True),
    "wide": (8, 4, 256, 0, 0, False),
}
BATCHES = {
    "decode": [(n, 1) for n in (0, 15, 16, 17, 127, 300, 1023, 2048, 4095)],
    "one": [(4095, 1)],
    "prefill": [(0, 1), (0, 130), (1000, 512), (77, 64), (4000, 96), (5, 2)],
    "mixed": [(300, 1), (4095, 1), (0, 1), (900, 200), (31, 1), (0, 33)],
}


def case(shape: str, sizes, dtype=torch.bfloat16, b: int = 16):
    H, G, d, latent, window, with_sinks = SHAPES[shape]
    layout = batch(sizes, b, device="cuda")
    tensors = draw(layout, b, H, G, d, dtype=dtype, latent=latent)
    sinks = torch.linspace(-2, 2, H, device="cuda").to(dtype) if with_sinks else None
    return tensors, layout, {"scale": 0.1, "window": window, "sinks": sinks}


def wanted(tensors, layout, how):
    """Torch's specification in float64."""
    query, key, value = tensors
    wide = key.double()
    latent = key.data_ptr() == value.data_ptr()
    sinks = None if how["sinks"] is None else how["sinks"].double()
    with force("torch"):
        return attend(
            query.double(), wide, wide[..., : value.shape[-1]] if latent else value.double(), layout,
            **{**how, "sinks": sinks},
        )  # fmt: skip


def error(ours, want):
    return ((ours.double() - want).norm() / want.norm().clamp_min(0.1)).item()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64_and_the_same_twice(shape, sizes, dtype):
    tensors, layout, how = case(shape, BATCHES[sizes], dtype)
    assert choose(*tensors).name == "triton"
    y, again = (attend(*tensors, layout, **how) for _ in range(2))
    assert torch.equal(y, again)
    assert y.isfinite().all()
    assert error(y, wanted(tensors, layout, how)) < LIMIT[dtype]


@pytest.mark.parametrize("b", [1, 24, 64, 128])
def test_blocks_of_other_sizes(b):
    tensors, layout, how = case("qwen3", BATCHES["mixed"], b=b)
    assert error(attend(*tensors, layout, **how), wanted(tensors, layout, how)) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("shape", ["olmoe", "deepseek-v2-lite", "gpt-oss"])
def test_many_sequences_and_every_way_to_split(shape):
    sizes = [(int(n), 1) for n in torch.linspace(0, 1200, 256)]
    tensors, layout, how = case(shape, sizes)
    want, v = wanted(tensors, layout, how), tensors[2].shape[-1]
    assert error(attend(*tensors, layout, **how), want) < LIMIT[torch.bfloat16]
    for split in ((1, 1), (2, 1), (5, 3), (64, 1)):
        y = torch.full((*tensors[0].shape[:2], v), torch.nan, device="cuda", dtype=torch.bfloat16)
        decode(y, *tensors, layout, **how, split=split)
        assert error(y, want) < LIMIT[torch.bfloat16], split


def copied(layout: Layout) -> Layout:
    """The same in tensors of its own, with room for longer contexts."""
    tensors = (layout.positions_T, layout.rows_T, layout.starts_N, layout.lengths_N, layout.tables_NM)
    return Layout(*(t.clone() for t in tensors), 1, 4096)


@pytest.mark.parametrize("shape", ["olmoe", "qwen3", "deepseek-v2-lite", "gpt-oss"])
def test_a_graph_follows_tensors_that_change(shape):
    tensors, layout, how = case(shape, [(100, 1), (3000, 1), (17, 1), (900, 1)])
    static = copied(layout)
    attend(*tensors, static, **how)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = attend(*tensors, static, **how)
    graph.replay()
    assert error(y, wanted(tensors, copied(static), how)) < LIMIT[torch.bfloat16]
    static.tables_NM.copy_(static.tables_NM.flip(0))
    static.lengths_N.copy_(torch.tensor([0, 16, 1500, 100]))
    graph.replay()
    assert y[0].eq(0).all()
    assert error(y, wanted(tensors, copied(static), how)) < LIMIT[torch.bfloat16]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("sizes", ["decode", "mixed"])
def test_nothing_waits_for_the_device(sizes):
    tensors, layout, how = case("olmoe", BATCHES[sizes])
    attend(*tensors, layout, **how)
    fresh = torch.randn_like(tensors[0])
    write(tensors[1:], (fresh, fresh), layout)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = batch(BATCHES[sizes], 16, device="cuda")
        write(tensors[1:], (fresh, fresh), again)
        attend(*tensors, again, **how)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", ["qwen3", "deepseek-v2-lite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write(shape, dtype):
    (query, key, value), layout, _ = case(shape, BATCHES["mixed"], dtype)
    T, (G, d), v = len(query), key.shape[2:], value.shape[-1]
    latent = d != v
    stores = (value, key[..., v:]) if latent else (key, value)
    fresh = [torch.randn(1, G, T, store.shape[-1], device="cuda")[0].transpose(0, 1) for store in stores]
    want = [store.clone() for store in stores]
    write(stores, fresh, layout)
    for store, expected, new in zip(stores, want, fresh, strict=True):
        expected.flatten(0, 1)[layout.rows_T] = new.to(dtype)
        assert torch.equal(store.nan_to_num(7), expected.nan_to_num(7))


def test_rows_beyond_two_to_the_31_numbers():
    b, G, d = 16, 4, 128
    layout = batch([(200, 1), (50, 30)], b, device="cuda")
    blocks = 2**31 // (b * G * d) + 100
    layout.tables_NM.add_(blocks - 40)
    key, value = (torch.randn(blocks, b, G, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(31, 8, d, device="cuda", dtype=torch.bfloat16)
    small = [t[-60:].clone() for t in (key, value)]
    y = attend(query, key, value, layout, scale=0.1)
    layout.tables_NM.sub_(blocks - 60)
    assert error(y, wanted((query, *small), layout, {"scale": 0.1, "window": 0, "sinks": None})) < LIMIT[torch.bfloat16]
