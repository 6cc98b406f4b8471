"""All implementations agree; the choice is explained; costs equal torch's own counter."""

import contextvars

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from labkit.core.routing import Routing
from labkit.kernels import dispatch, reference
from labkit.kernels.dispatch import Problem, choose, experts, force, names, register, traffic


def problem(T, D, F, E, K, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g).to(dtype)  # noqa: E731
    ids, scores = reference.route(torch.randn(T, E, generator=g), top_k=K)
    return r(T, D), (ids, scores), r(E, 2 * F, D) * D**-0.5, r(E, D, F) * F**-0.5


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("T", "E", "K"), [(0, 3, 2), (1, 5, 1), (7, 5, 2), (7, 4, 4), (33, 6, 3)])
def test_implementations_agree_with_the_loop_and_its_gradients(name, T, E, K):
    if name == "grouped_mm" and T == 0:
        pytest.skip("grouped_mm says it cannot; auto takes another")
    grads = []
    for which in ("loop", name):
        x, (ids, scores), up, down = problem(T, 8, 12, E, K)
        leaves = [t.requires_grad_() for t in (x, scores, up, down)]
        y = experts(x, (ids, scores), up, down, implementation=which)
        y.square().sum().backward()
        grads.append([y.detach(), *(t.grad for t in leaves)])
    for ours, want in zip(*grads, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", names())
def test_low_precision(name, dtype):
    if name == "triton" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
            choose(p(dtype=dtype), name)
        return
    x, decision, up, down = problem(17, 16, 8, 5, 2, dtype)
    y = experts(x, decision, up, down, implementation=name)
    assert y.dtype == dtype
    want = experts(x.double(), decision, up.double(), down.double(), implementation="loop")
    torch.testing.assert_close(y.double(), want, rtol=0.05, atol=0.05)


def test_an_overexpanded_gradient_is_fine_for_grouped_mm():
    x, decision, up, down = problem(9, 8, 8, 4, 2)
    up.requires_grad_()
    experts(x, decision, up, down, implementation="grouped_mm").sum().backward()
    assert up.grad.isfinite().all()


def test_a_routing_record_is_a_decision():
    x, (ids, scores), up, down = problem(7, 8, 8, 4, 2)
    record = Routing.of(torch.zeros(7, 4), ids, scores)
    assert torch.equal(experts(x, record, up, down), experts(x, (ids, scores), up, down))
    with pytest.raises(ValueError, match="the routing has 9 experts"):
        experts(x, Routing.of(torch.zeros(7, 9), ids, scores), up, down)


def p(**changes):
    return Problem(**({"T": 8, "D": 8, "F": 8, "E": 4, "K": 2, "dtype": torch.float32, "device": "cpu"} | changes))


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({}, "grouped_mm", "first choice"),
        ({"D": 6}, "sorted", "D = 6 makes rows of 24 bytes"),
        ({"F": 9, "dtype": torch.bfloat16}, "sorted", "F = 9 makes rows of 18 bytes"),
        ({"dtype": torch.float64}, "sorted", "not float64"),
        ({"T": 0}, "sorted", "no tokens"),
    ],
)
def test_auto_explains_itself(changes, name, words):
    choice = choose(p(**changes))
    assert choice.name == name
    assert words in choice.reason


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="multiple of 16"):
        choose(p(D=6), "grouped_mm")
    with pytest.raises(ValueError, match="choose 'auto' or one of"):
        choose(p(), "magic")
    with pytest.raises(ValueError, match="choose 'auto' or one of"), force("magic"):
        pass
    x, decision, up, down = problem(7, 8, 8, 4, 2)
    with pytest.raises(ValueError, match="one dtype"):
        experts(x.double(), decision, up, down)


def test_force_wins_nests_and_ends():
    with force("onehot"):
        assert choose(p(), "loop").name == "onehot"
        with force("sorted"):
            assert choose(p()).name == "sorted"
        assert choose(p()).reason == "forced"
        assert contextvars.Context().run(lambda: choose(p()).name) == "grouped_mm"
    assert choose(p(), "loop").reason == "asked for"


def test_a_new_kernel_joins(monkeypatch):
    monkeypatch.setattr(dispatch, "_REGISTRY", dict(dispatch._REGISTRY))
    register("mine", lambda x, *rest: x + 1, supports=lambda q: "" if q.D == 8 else "D is not 8", rank=99)
    x, decision, up, down = problem(7, 8, 8, 4, 2)
    assert torch.equal(experts(x, decision, up, down), x + 1)
    assert choose(p(D=16)) == dispatch.Choice("grouped_mm", "mine cannot: D is not 8")
    for taken in ("mine", "auto"):
        with pytest.raises(ValueError, match="taken"):
            register(taken, print)


@pytest.mark.parametrize("name", ["loop", "sorted", "onehot"])
@pytest.mark.parametrize("sizes", [(7, 8, 12, 5, 2), (1, 4, 3, 4, 4), (33, 8, 8, 6, 1)])
def test_flops_equal_torchs_counter(name, sizes):
    x, decision, up, down = problem(*sizes)
    with FlopCounterMode(display=False) as counter:
        experts(x, decision, up, down, implementation=name)
    assert traffic(name, *sizes).flops == counter.get_total_flops()


def test_onehot_wastes_exactly_this_much():
    T, D, F, E, K = 100, 16, 32, 8, 2
    t, s = traffic("onehot", T, D, F, E, K), traffic("sorted", T, D, F, E, K)
    assert t.wasted_flops == 6 * T * (E - K) * D * F + 2 * T * E * D
    assert (t.flops - 2 * T * E * D) * K == s.flops * E
    assert s.wasted_flops == 0
    assert s.useful_flops == t.useful_flops == traffic("grouped_mm", T, D, F, E, K).flops
    assert s.bytes < traffic("loop", T, D, F, E, K).bytes < t.bytes
    assert traffic("sorted", T, D, F, E, K, itemsize=4).bytes == 2 * s.bytes


def test_bytes_by_hand():
    rows = 2 * (3 + 2 * 5 + 5 + 3)
    assert traffic("sorted", 1, 3, 5, 2, 1, itemsize=1).bytes == 2 * 3 + 1 + 3 * 3 * 5 + rows
    assert traffic("sorted", 0, 3, 5, 2, 1).bytes == 0 == traffic("onehot", 0, 3, 5, 2, 1).flops


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: traffic("magic", 1, 1, 1, 1, 1), "choose onehot"),
        (lambda: traffic("loop", -1, 1, 1, 1, 1), "T >= 0"),
        (lambda: traffic("loop", 1, 1, 1, 2, 3), "K at most E"),
    ],
)
def test_bad_sizes(call, words):
    with pytest.raises(ValueError, match=words):
        call()
