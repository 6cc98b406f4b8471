"""The paged cache: whoever shares a batch or a block, each sequence's logits are those of the model alone."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from paged_models import FAMILIES, V, alone, build, chunk, run, tokens

from labkit.core.memory import kv_cache_bytes_per_token
from labkit.core.presets import preset
from labkit.kernels.interpreter import brisk
from labkit.kernels.paged_attention import force
from labkit.nn import KVCache
from labkit.serve.cache.paged import Layout, PagedCache
from labkit.serve.scheduler import Limits, Scheduler, Sequence

SIZE = 4


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest):
    return build(request.param)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_chunks_and_decoding_in_mixed_company_through_shuffled_blocks(model):
    ids = [tokens(length, seed) for seed, length in enumerate((21, 9, 14, 3))]
    tables = [(7, 2, 13, 0, 9, 4), (3, 12, 5), (1, 11, 8, 14), (6,)]
    cuts = [(0, 11, 18, 19, 20, 21), (0, 1, 2, 3, 8, 9), (0, 6, 13, 14), (0, 3)]
    cache = PagedCache(model.config, 15, SIZE, dtype=model.dtype)
    cache.lose()  # what nobody wrote is no number
    found = [[] for _ in ids]
    for step in range(5):
        moves = [n for n, cut in enumerate(cuts) if step < len(cut) - 1]
        moves = moves[::-1] if step % 2 else moves
        chunks = [chunk(ids[n], *cuts[n][step : step + 2], tables[n]) for n in moves]
        for n, logits in zip(moves, run(model, cache, chunks), strict=True):
            found[n].append(logits)
    for n, parts in enumerate(found):
        same(torch.cat(parts), alone(model, ids[n]))


def test_a_shared_prefix_is_read_from_the_same_blocks(model):
    prefix = tokens(8)
    first, second = prefix + tokens(5, 1), prefix + tokens(6, 2)
    cache = PagedCache(model.config, 9, SIZE, dtype=model.dtype)
    run(model, cache, [chunk(first, 0, 13, (5, 3, 8, 1))])
    (a, b) = run(model, cache, [chunk(second, 8, 14, (5, 3, 0, 2)), chunk((*first, 7), 13, 14, (5, 3, 8, 1))])
    same(a, alone(model, second)[8:])
    same(b, alone(model, (*first, 7))[13:])


def test_a_fork_writes_into_its_copy(model):
    prompt = tokens(6)
    left, right = (*prompt, 1, 2), (*prompt, 3, 4)
    cache = PagedCache(model.config, 9, SIZE, dtype=model.dtype)
    run(model, cache, [chunk(prompt, 0, 6, (2, 7))])
    cache.copy([])
    cache.copy([(7, 4)])
    a, b = run(model, cache, [chunk(left, 6, 8, (2, 4)), chunk(right, 6, 8, (2, 7))])
    same(a, alone(model, left)[6:])
    same(b, alone(model, right)[6:])


def test_copies_are_all_read_then_all_written(model):
    ids = tokens(8)
    cache = PagedCache(model.config, 3, SIZE, dtype=model.dtype)
    run(model, cache, [chunk(ids, 0, 7, (0, 2))])
    cache.copy([(0, 2), (2, 0)])
    (logits,) = run(model, cache, [chunk(ids, 7, 8, (2, 0))])
    same(logits, alone(model, ids)[7:])


def test_under_the_scheduler_with_forks_shared_prefixes_and_too_few_blocks(model):
    """Every sampled token's logits, whatever was cut, shared, copied, preempted and computed again."""
    limits = Limits(num_blocks=12, block_size=SIZE, max_tokens_per_step=9, max_sequences=5, max_context=40, reserve=0)
    it, cache, drawn = Scheduler(limits), PagedCache(model.config, 12, SIZE, dtype=model.dtype), count(1)
    prompts = [tokens(10), tokens(10)[:9] + tokens(4, 1), tokens(15, 2), tokens(3, 3), tokens(10)[:8] + tokens(2, 4)]
    for n, prompt in enumerate(prompts):
        it.add(Sequence(str(n), prompt, max_tokens=8))
    seen, copies = [], 0
    while step := it.schedule():
        cache.copy(step.copies)
        copies += len(step.copies)
        last = {c.id: logits[-1] for c, logits in zip(step.chunks, run(model, cache, step.chunks), strict=True)}
        seen += [(it[c.id].tokens[: c.start + len(c.tokens)], last[c.id]) for c in step.chunks if c.samples]
        forks = [c.id for c in step.chunks if c.id == "0" and c.samples and not it["0"].produced]
        if forks:
            it.fork("0", ["fork"])
        it.update(
            step, {c.id: next(drawn) % V for c in step.chunks if c.samples} | dict.fromkeys(["fork"][: len(forks)], 5)
        )
        for c in step.chunks:
            if len(it[c.id].produced) == 8:
                it.finish(c.id)
        if "fork" in it and len(it["fork"].produced) == 8:
            it.finish("fork")
        it.check()
    load = it.load()
    assert copies
    assert load.preemptions
    assert load.cached_tokens
    assert len(seen) >= 47
    for ids, logits in seen:
        same(logits, alone(model, ids)[-1])


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_the_kernels_interpreted_give_the_same(family):
    model = build(family, torch.float32)
    a, b = tokens(9), tokens(7, 1)
    cache = PagedCache(model.config, 6, SIZE)
    with force("triton"), brisk():
        run(model, cache, [chunk(a, 0, 8, (4, 1, 3)), chunk(b, 0, 5, (0, 5))])
        last, more = run(model, cache, [chunk(a, 8, 9, (4, 1, 3)), chunk(b, 5, 7, (0, 5))])
    torch.testing.assert_close(last, alone(model, a)[8:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(more, alone(model, b)[5:], rtol=1e-4, atol=1e-4)


def test_it_equals_the_contiguous_cache_in_float32():
    model = build("qwen3_moe", torch.float32)
    ids, cache, paged = tokens(9), KVCache(model.config, 1, 9), PagedCache(model.config, 3, SIZE)
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        (ours,) = run(model, paged, [chunk(ids, start, stop, (2, 0, 1))])
        with torch.no_grad():
            theirs = model(torch.tensor([ids[start:stop]]), cache=cache).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_a_cache_may_be_narrower_than_the_model(family):
    model, ids = build(family, torch.float32), tokens(9)
    paged = PagedCache(model.config, 3, SIZE, dtype=torch.bfloat16)
    (first,) = run(model, paged, [chunk(ids, 0, 5, (2, 0, 1))])
    (last,) = run(model, paged, [chunk(ids, 5, 9, (2, 0, 1))])
    assert first.dtype == torch.float32
    error = (torch.cat([first, last]) - alone(model, ids)).norm() / alone(model, ids).norm()
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_bytes_equal_the_formula(name):
    cache = PagedCache(preset(name), 3, 2, dtype=torch.bfloat16)
    assert cache.bytes_per_token == kv_cache_bytes_per_token(preset(name), 2)
    assert cache.nbytes == 4 * 2 * cache.bytes_per_token


def test_what_is_lost_is_no_number_until_it_is_written_again(model):
    ids = tokens(6)
    cache = PagedCache(model.config, 3, SIZE, dtype=model.dtype)
    run(model, cache, [chunk(ids, 0, 5, (0, 1))])
    cache.lose()
    (logits,) = run(model, cache, [chunk(ids, 5, 6, (0, 1))])
    assert logits.isnan().all()
    (logits,) = run(model, cache, [chunk(ids, 0, 6, (0, 1))])
    same(logits, alone(model, ids))


def test_misuse_is_told(model):
    cache = PagedCache(model.config, 3, SIZE, dtype=model.dtype)
    ids_1T, positions_1T = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    layout = Layout.of([chunk((1, 2), 0, 2, (0,))], SIZE)
    with pytest.raises(ValueError, match=r"with cache.using\(layout\)"):
        model(ids_1T, position_ids=positions_1T, cache=cache)
    with cache.using(layout):
        with pytest.raises(ValueError, match="give position_ids, and no attention_mask"):
            model(ids_1T, cache=cache)
        with pytest.raises(ValueError, match="give position_ids, and no attention_mask"):
            model(ids_1T, torch.ones(1, 2), position_ids=positions_1T, cache=cache)
        with pytest.raises(ValueError, match="expected one row of the layout's 2 tokens"):
            model(ids_1T[:, :1], position_ids=positions_1T[:, :1], cache=cache)
    assert cache.layout is None
    for pairs, said in (([(0, 3)], "the blocks are 0 to 2"), ([(0, 1), (2, 1)], "two of them into one block")):
        with pytest.raises(ValueError, match=said):
            cache.copy(pairs)
    with pytest.raises(ValueError, match="num_blocks is 0"):
        PagedCache(model.config, 0, SIZE)


def test_latents_are_read_in_the_absorbed_form():
    model = build("deepseek_v2")
    cache = PagedCache(model.config, 3, SIZE, dtype=model.dtype)
    model.layers[1].attention.absorbed = False
    with pytest.raises(ValueError, match="read in the absorbed form"):
        run(model, cache, [chunk((1, 2), 0, 2, (0,))])
