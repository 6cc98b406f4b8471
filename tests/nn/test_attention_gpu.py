"""On a GPU: the fast backends run where they can, are told by name, and equal the float32 definition."""

import pytest
import torch
from random_models import off
from test_attention import CONFIGS, Fused, plainly, seeded, tokens
from test_latent import CONFIGS as LATENT
from test_latent import seeded as seeded_latent
from their_attention import padding_of, run_cached, run_ours

from labkit.core.config import ModelConfig
from labkit.nn import KVCache
from labkit.nn.attention import attend, backend

pytestmark = pytest.mark.gpu
OPERATORS = {"flash": "_flash_attention", "cudnn": "_cudnn_attention", "efficient": "_efficient_attention"}
FAST = ("flash", "cudnn")


def given(H: int, G: int, S: int, K: int, d: int, v: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = (2, H, S, d), (2, G, K, d), (2, G, K, v)
    return [tokens(*shape, seed=i).cuda().to(dtype).requires_grad_() for i, shape in enumerate(shapes)]


def window(S: int, K: int) -> torch.Tensor:
    i, j = torch.arange(K - S, K)[:, None], torch.arange(K)[None]
    return ((j <= i) & (j > i - 16))[None, None].cuda()


# H, G, S, K, d, v, masked, sinks: which backends may run in bfloat16
SHAPES = [
    (8, 8, 128, 128, 64, 64, False, False, FAST),
    (8, 2, 128, 128, 64, 64, False, False, FAST),
    (8, 2, 128, 128, 64, 64, False, True, FAST),
    (8, 2, 1, 128, 64, 64, False, True, FAST),
    (8, 8, 128, 128, 192, 128, False, False, FAST),
    (8, 2, 128, 128, 64, 64, True, False, ("efficient", "cudnn")),
    (8, 2, 128, 128, 64, 64, True, True, ("efficient", "cudnn")),
    (8, 2, 16, 128, 64, 64, False, False, ("efficient", "cudnn")),
    (8, 1, 1, 128, 576, 576, False, False, ("efficient",)),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("H", "G", "S", "K", "d", "v", "masked", "sinks", "names"), SHAPES)
def test_fast_and_as_told(H, G, S, K, d, v, masked, sinks, names, dtype) -> None:
    leaves, mask = given(H, G, S, K, d, v, dtype), window(S, K) if masked else None
    logits = tokens(H, seed=9).cuda().requires_grad_() if sinks else None
    told = backend(*leaves, mask, sinks=logits)
    with Fused() as ran:
        y = attend(*leaves, mask, scale=d**-0.5, sinks=logits)
    assert told.name in names, told
    assert len(ran.names) == 1
    assert OPERATORS[told.name] in ran.names[0]
    leaves += [logits] if sinks else []
    wide = [t.detach().float().cpu().requires_grad_() for t in leaves]
    want = plainly(*wide[:3], None if mask is None else mask.cpu(), scale=d**-0.5, sinks=wide[3] if sinks else None)
    pull = tokens(*want.shape, seed=11)
    (want * pull).sum().backward()
    (y * pull.cuda().to(dtype)).sum().backward()
    assert off(y.detach().float().cpu(), want.detach()) < 0.02
    for leaf, target in zip(leaves, wide, strict=True):
        assert off(leaf.grad.float().cpu(), target.grad) < 0.04


def test_the_reasons_are_told() -> None:
    tensors = [t.detach() for t in given(8, 2, 128, 128, 64, 64, torch.bfloat16)]
    masked = backend(*tensors, window(128, 128))
    assert "flash cannot" in masked.reason
    assert "mask" in masked.reason
    wide = backend(*(t.float() for t in tensors))
    assert wide.name == "efficient"
    assert "flash cannot" in wide.reason
    assert "float" in wide.reason.lower()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        off_ = backend(*tensors)
    assert off_.name == "math"
    assert all(f"{name} cannot" in off_.reason for name in OPERATORS)


@pytest.mark.parametrize("config", CONFIGS + LATENT, ids=lambda c: c.name)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_modules_equal_the_cpu(config: ModelConfig, padding: str) -> None:
    module = (seeded_latent if config.attention == "mla" else seeded)(config)
    x, real = tokens(3, 9, 16), padding_of(padding, 3, 9)
    counts = slice(None) if real is None else real.bool()
    want = run_ours(module, x, real)[counts]
    module.cuda()
    there = None if real is None else real.cuda()
    got = run_ours(module, x.cuda(), there)[counts]
    assert off(got.cpu(), want) < 5e-3  # float32 products may run in TF32
    with torch.autocast("cuda", dtype=torch.bfloat16):
        narrow = run_ours(module, x.cuda(), there)
    assert narrow.dtype == torch.bfloat16
    assert off(narrow[counts].float().cpu(), want) < 0.03
    narrow.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("config", CONFIGS + LATENT, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_on_the_gpu(config: ModelConfig, dtype: torch.dtype) -> None:
    module = (seeded_latent if config.attention == "mla" else seeded)(config).cuda().to(dtype)
    x, real = tokens(3, 9, 16).cuda().to(dtype), padding_of("left", 3, 9).cuda()
    with torch.no_grad():
        whole = run_ours(module, x, real)
        cache = KVCache(config, 3, 9, dtype=dtype, device="cuda")
        parts = run_cached(module, x, cache, (4, 5, 7, 8, 9), real)
    assert off(parts[real.bool()].float(), whole[real.bool()].float()) < (5e-3 if dtype == torch.float32 else 0.03)
    assert cache.reads == 24
