"""Rows arrive where they should, in every format, and what stands between start and wait runs meanwhile."""

from __future__ import annotations

import parallel_cases
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.nn import MoE
from labkit.train.parallel import (
    ParallelMoE,
    Plan,
    copies,
    decode,
    depart,
    encode,
    exchange,
    launch,
    row_bytes,
    swap_counts,
    traffic,
)


def sizes(ranks: int, seed: int) -> torch.Tensor:
    """Rows from each rank to each, many of them none."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (ranks, ranks), generator=draw) * torch.randint(0, 2, (ranks, ranks), generator=draw)


def trade(seeds: list[int], dtypes: list[torch.dtype]) -> None:
    """Every row says where it comes from and where it goes; its gradient must say it again."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for seed in seeds:
        rows_RR = sizes(ranks, seed)
        sent, received = rows_RR[rank].tolist(), rows_RR[:, rank].tolist()
        assert swap_counts(rows_RR[rank], dist.group.WORLD).tolist() == received
        for dtype in dtypes:
            names = [10.0 * rank + to for to in range(ranks) for _ in range(sent[to])]
            x = torch.tensor(names).reshape(-1, 1).expand(-1, 3).to(dtype).clone().requires_grad_()
            got = depart(x, sent, received, dist.group.WORLD).wait()
            expected = [10.0 * of + rank for of in range(ranks) for _ in range(received[of])]
            assert got.dtype == dtype
            assert got[:, 0].tolist() == expected
            (got * got.detach()).sum().backward()
            assert torch.equal(x.grad, x.detach())


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_and_their_gradients_go_where_they_should(ranks):
    launch(trade, ranks, list(range(6)), [torch.float32, torch.bfloat16, torch.float64], timeout=60)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one number for each rank, the first in sum the rows"):
        depart(torch.ones(3, 2), [2], [2], None)
    flight = depart(torch.ones(3, 2), [3], [3], None)
    flight.wait()
    with pytest.raises(ValueError, match="have arrived already"):
        flight.wait()


@pytest.mark.parametrize("overlap", [True, False])
def test_shared_experts_run_between_departure_and_arrival_forwards_and_backwards(monkeypatch, overlap):
    case = parallel_cases.make("one", (5,), num_shared_experts=1)
    layer = ParallelMoE(case.whole(), overlap=overlap)
    events = []
    plain_start, plain_end = exchange._all_to_all, exchange._arrived

    def start(x, *args, **options):
        events.append("start") if x.shape[-1] == case.config.d_model else None
        return plain_start(x, *args, **options)

    def end(x):
        events.append("end") if x.shape[-1] == case.config.d_model else None
        return plain_end(x)

    monkeypatch.setattr(exchange, "_all_to_all", start)
    monkeypatch.setattr(exchange, "_arrived", end)
    layer.shared.register_forward_hook(lambda *_: events.append("shared"))
    layer.shared.down_DF.register_hook(lambda _: events.append("shared"))
    x = case.x_by_rank[0].clone().requires_grad_()
    y = layer(x)
    there, forward = ["start", "end"], list(events)
    assert forward == (["start", "shared", "end", *there] if overlap else [*there, *there, "shared"])
    events.clear()
    y.sum().backward()
    assert sorted(events) == sorted(forward)
    if overlap:
        assert events == [*there, "start", "shared", "end"]


def test_overlap_changes_no_bit():
    case = parallel_cases.make("one", (9,), num_shared_experts=2)
    found = []
    for overlap in (True, False):
        x = case.x_by_rank[0].clone().requires_grad_()
        y = ParallelMoE(case.whole(), overlap=overlap)(x)
        y.backward(case.grad_by_rank[0])
        found.append((y, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@given(
    rows=st.integers(0, 5), width=st.integers(1, 300), scale=st.floats(-20, 20), seed=st.integers(0, 10**6)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_format_keeps_each_value_to_half_its_last_place(rows, width, scale, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2.0**scale
    for wire, relative in (("same", 0.0), ("float32", 0.0), ("bfloat16", 2**-8), ("fp8", 2**-4)):
        sent = encode(x, wire)
        assert sent.numel() * sent.element_size() == rows * row_bytes(width, wire)
        error = (decode(sent, wire, width, torch.float32) - x).abs()
        smallest = x.abs().amax() / 448 * 2**-9 if wire == "fp8" and rows else 0.0  # half the smallest subnormal step
        assert (error <= relative * x.abs() + 2 * smallest).all()


def test_a_value_that_is_not_finite_does_not_vanish_on_the_way():
    x = torch.tensor([[1.0, float("nan")], [2.0, float("inf")], [3.0, 4.0]])
    back = decode(encode(x, "fp8"), "fp8", 2, torch.float32)
    assert not back[:2].isfinite().all(dim=1).any()
    assert torch.equal(back[2], x[2]) or back[2].isfinite().all()


@given(
    tokens=st.integers(0, 20), ranks=st.sampled_from([1, 2, 4, 8]), top_k=st.integers(1, 8), seed=st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_a_plan_sends_every_pair_once_and_no_token_twice_to_a_rank(tokens, ranks, top_k, seed):
    scores = torch.rand(tokens, 8, generator=torch.Generator().manual_seed(seed))
    ids = scores.topk(top_k, dim=1).indices
    plan = Plan.of(ids, 8, ranks)
    to = torch.arange(ranks).repeat_interleave(plan.sent_R)
    pairs = [
        (int(token), int(rank) * (8 // ranks) + int(e))
        for token, rank, row in zip(plan.token_M, to, plan.ids_MK, strict=True)
        for e in row[row >= 0]
    ]
    assert sorted(pairs) == sorted((t, int(e)) for t in range(tokens) for e in ids[t])
    assert len({(int(t), int(r)) for t, r in zip(plan.token_M, to, strict=True)}) == len(plan.token_M)
    assert copies(ids, 8, ranks).sum() == len(plan.token_M)


def test_traffic_counts_by_hand():
    """Two nodes of two ranks, an expert each: one token at home, one with both experts on the other node."""
    ids = [torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[3, 0]])]
    found = traffic(ids, 4, d_model=128, wire="fp8", ranks_per_node=2)
    assert found.rows_RR.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert found.out_bytes == 128 + 4 + 2 * 8
    assert found.back_bytes == 256
    assert found.between(found.rows_RR) == {"home": 2, "node": 1, "network": 3}
    assert found.received_R.tolist() == [2, 1, 1, 2]
    assert found.imbalance == pytest.approx(2 / 1.5)
    assert (found.bytes_RR == found.dispatch_RR + found.combine_RR).all()
    assert found.combine_RR[2, 1] == 256
    twice = traffic(ids, 4, d_model=128, wire="fp8", ranks_per_node=2, by_node=True)
    assert twice.between(twice.rows_RR) == {"home": 5, "node": 3, "network": 2}
    assert twice.received_R.tolist() == found.received_R.tolist()
    with pytest.raises(ValueError, match="a divisor of the 4 ranks"):
        traffic(ids, 4, d_model=128, ranks_per_node=3)


def test_a_model_without_sparse_layers_is_refused():
    from labkit.train.parallel import spread_experts

    with pytest.raises(ValueError, match=r"Linear has no nn\.MoE layer"):
        spread_experts(torch.nn.Linear(2, 2), None)
    assert isinstance(spread_experts(MoE(parallel_cases.make("", (1,)).config), None), ParallelMoE)
