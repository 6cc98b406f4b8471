"""The experts on Triton kernels equal the loop, values and gradients, in the interpreter; and they are one operator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from labkit.kernels import experts as fused
from labkit.kernels import reference
from labkit.kernels.experts import experts


def draw(T, D, F, E, K, *, routing="drawn", dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    ids = r(T, E).topk(K).indices
    if routing == "one":  # every token's first choice is the same expert
        ids[:, 0] = E - 1
    elif routing == "few":
        ids = ids % max(1, E // 2)
    leaves = (r(T, D), torch.rand(T, K, generator=g), r(E, 2 * F, D) * D**-0.5, r(E, D, F) * F**-0.5)
    x, scores, up, down = (leaf.to(dtype).requires_grad_() for leaf in leaves)
    return x, ids, scores, up, down


def run(fn, x, ids, scores, up, down):
    y = fn(x, ids, scores, up, down)
    grad = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    return [y, *torch.autograd.grad(y, (x, scores, up, down), grad)]


def close(ours, want, limit=1e-5):
    for name, a, b in zip(("output", "x", "scores", "gate_up", "down"), ours, want, strict=True):
        error = (a - b).norm() / b.norm().clamp_min(1e-9)
        assert error < limit, f"{name}: relative error {error:.1e}"


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_values_and_gradients_equal_the_loop(data):
    E = data.draw(st.integers(1, 7), "E")
    K = data.draw(st.integers(1, min(3, E)), "K")
    T, D, F = data.draw(st.integers(1, 70), "T"), 4 * data.draw(st.integers(1, 18)), 4 * data.draw(st.integers(1, 18))
    routing = data.draw(st.sampled_from(["drawn", "one", "few"]), "routing")
    given_ = draw(T, D, F, E, K, routing=routing, seed=data.draw(st.integers(0, 9), "seed"))
    close(run(experts, *given_), run(reference.experts_loop, *given_))


@pytest.mark.parametrize("rows", [4, 30, 90])
def test_every_size_of_tile(rows):
    """16, 32 and 64 rows a tile: chosen by the rows of an average expert."""
    given_ = draw(rows * 2, 24, 40, 4, 2)
    close(run(experts, *given_), run(reference.experts_loop, *given_))


def test_no_tokens():
    x, ids, scores, up, down = draw(0, 8, 8, 4, 2)
    y, *grads = run(experts, x, ids, scores, up, down)
    assert y.shape == (0, 8)
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, (x, scores, up, down), strict=True))


def test_tensors_that_are_not_contiguous():
    x, ids, scores, up, down = draw(9, 16, 8, 3, 2)
    turned = [t.detach().mT.contiguous().mT.requires_grad_() for t in (x, scores, up, down)]
    assert not any(t.is_contiguous() for t in turned)
    ours = run(experts, turned[0], ids.T.contiguous().T, *turned[1:])
    close(ours, run(reference.experts_loop, x, ids, scores, up, down))


def test_a_dropped_pair_adds_nothing():
    x, ids, scores, up, down = draw(11, 16, 8, 4, 2)
    dropped = ids.clone()
    dropped[3, 1], dropped[7, 0], dropped[8] = -1, 4, 99
    kept = ((dropped >= 0) & (dropped < 4)).float()
    ours = run(experts, x, dropped, scores, up, down)
    want = run(lambda x, ids, s, *w: reference.experts_loop(x, ids, s * kept, *w), x, ids, scores, up, down)
    close(ours, want)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_one_experts_infinity_stays_with_it():
    """A tile reaches into the next expert's rows; what stands there must not."""
    x, ids, scores, up, down = draw(9, 16, 8, 3, 1)
    ids[:, 0] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    x.data[4] = float("inf")  # a token of expert 1
    _, grad_x, _, grad_up, grad_down = run(experts, x, ids, scores, up, down)
    for expert in (0, 2):
        assert grad_up[expert].isfinite().all()
        assert grad_down[expert].isfinite().all()
    assert grad_x[ids[:, 0] != 1].isfinite().all()


def test_only_what_is_asked_for_gets_a_gradient():
    x, ids, scores, up, down = draw(9, 16, 8, 3, 2)
    want = run(reference.experts_loop, x, ids, scores, up, down)
    for wanted in ((0,), (1,), (2,), (3,), (0, 3)):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((x, scores, up, down))]
        y = experts(leaves[0], ids, *leaves[1:])
        y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape))
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (i not in wanted)
            if i in wanted:
                torch.testing.assert_close(leaf.grad, want[1 + i], rtol=1e-4, atol=1e-5)


def test_backward_keeps_the_pre_activation_and_nothing_else_of_that_size():
    x, ids, scores, up, down = draw(50, 16, 24, 4, 2)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = experts(x, ids, scores, up, down)
    inputs = {t.untyped_storage().data_ptr() for t in (x, ids, scores, up, down)}
    kept = sorted(size for where, size in saved.items() if where not in inputs)
    assert kept[-1] == 50 * 2 * 2 * 24 * 4  # T·K·2F values of float32
    assert sum(kept[:-1]) <= 4 * (2 * 50 * 2 + 2 * 5 + 7)  # the map: two numbers a pair, and E's
    y.sum().backward()
    with torch.no_grad():
        assert fused._forward(x, ids, scores, up, down, False)[1].numel() == 0


def test_it_is_one_operator():
    x, ids, scores, up, down = draw(9, 16, 8, 3, 2)
    torch.library.opcheck(fused._forward, (x, ids, scores, up, down, True))
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    for ours, want in zip(run(compiled, x, ids, scores, up, down), run(experts, x, ids, scores, up, down), strict=True):
        assert torch.equal(ours, want)


def test_a_second_derivative_is_refused():
    x, ids, scores, up, down = draw(9, 16, 8, 3, 2)
    (grad,) = torch.autograd.grad(experts(x, ids, scores, up, down).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_torch_counts_the_flops_of_the_loop():
    x, ids, scores, up, down = draw(9, 16, 8, 3, 2)
    counted = {}
    for fn in (experts, reference.experts_loop):
        with FlopCounterMode(display=False) as counter:
            run(fn, x, ids, scores, up, down)
        counted[fn] = counter.get_total_flops()
    assert counted[experts] == counted[reference.experts_loop] == 18 * 9 * 2 * 16 * 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        experts(x, ids, scores, up, down)
    assert counter.get_total_flops() == 6 * 9 * 2 * 16 * 8
    frozen = [t.detach() for t in (up, down)]
    with FlopCounterMode(display=False) as counter:
        experts(x, ids, scores, *frozen).sum().backward()
    assert counter.get_total_flops() == (6 + 2 + 4) * 9 * 2 * 16 * 8


def test_what_cannot_be_computed_is_told():
    x, ids, scores, up, down = (t.detach() for t in draw(9, 16, 8, 3, 2))
    with pytest.raises(ValueError, match=r"float32, float16 and bfloat16, not float64"):
        experts(x.double(), ids, scores, up.double(), down.double())
    with pytest.raises(ValueError, match=r"D = 18 makes rows of 72 bytes; it needs a multiple of 16"):
        experts(torch.zeros(9, 18), ids, scores, torch.zeros(3, 16, 18), torch.zeros(3, 18, 8))
    with pytest.raises(ValueError, match=r"down_EDF has shape"):
        experts(x, ids, scores, up, down.mT)
