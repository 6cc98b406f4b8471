"""Whole models over the paged cache on a GPU: the logits of the model alone, also from a graph."""

import pytest
import torch
from paged_models import FAMILIES, alone, build, chunk, run, tokens

from labkit.serve.cache.paged import Layout, PagedCache

pytestmark = pytest.mark.gpu
SIZE = 16


def close(ours, want):
    assert (ours - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_company(family):
    model = build(family, torch.float32).cuda()
    a, b, c = tokens(150), tokens(41, 1), tokens(20, 2)
    tables = (7, 2, 13, 0, 9, 4, 15, 14, 16, 17), (3, 12, 5), (1, 11)
    cache = PagedCache(model.config, 20, SIZE, device="cuda")
    cache.lose()
    found = run(model, cache, [chunk(b, 0, 40, tables[1]), chunk(a, 0, 100, tables[0])])
    close(found[0], alone(model, b)[:40])
    found = run(model, cache, [chunk(b, 40, 41, tables[1]), chunk(a, 100, 150, tables[0]), chunk(c, 0, 20, tables[2])])
    close(found[0], alone(model, b)[40:])
    close(found[1], alone(model, a)[100:])
    close(found[2], alone(model, c))
    cache.copy([(2, 7), (7, 2)])
    (last,) = run(model, cache, [chunk((*a, 1), 150, 151, (2, 7, *tables[0][2:]))])
    close(last, alone(model, (*a, 1))[150:])


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
@torch.no_grad()
def test_a_step_of_decoding_in_a_graph(family):
    """Captured with an empty place, which writes into the spare block."""
    model = build(family, torch.float32).cuda()
    a, b = tokens(60), tokens(33, 1)
    cache = PagedCache(model.config, 8, SIZE, device="cuda")
    run(model, cache, [chunk(a, 0, 59, (4, 0, 6, 1)), chunk(b, 0, 32, (2, 5, 7))])
    step = Layout.of([chunk(a, 59, 60, (4, 0, 6, 1)), chunk(b, 32, 33, (2, 5, 7))], SIZE, "cuda")
    spare = torch.tensor([8 * SIZE], device="cuda")
    layout = Layout(
        torch.cat([step.positions_T, spare * 0]), torch.cat([step.rows_T, spare]),
        torch.arange(4, device="cuda", dtype=torch.int32), torch.cat([step.lengths_N, spare.int() * 0]),
        torch.cat([step.tables_NM, step.tables_NM[:1] * 0]), 1, 128,
    )  # fmt: skip
    ids_1T = torch.tensor([[a[59], b[32], 0]], device="cuda")
    with cache.using(layout):
        call = lambda: model(ids_1T, position_ids=layout.positions_T[None], cache=cache).logits[0]  # noqa: E731
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = call()
    graph.replay()
    close(logits[:1], alone(model, a)[59:])
    close(logits[1:2], alone(model, b)[32:])
    assert logits.isfinite().all()
