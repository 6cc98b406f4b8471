"""Flash attention equals torch's plain one in float64, values and gradients, in the interpreter; it is one operator."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from labkit.kernels import attention as flash
from labkit.kernels.attention import attention
from labkit.kernels.attention_tiles import INTERPRETED_BLOCK


def draw(B, H, G, S, K, d, *, seed=0, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    shapes = (B, H, S, d), (B, G, K, d), (B, G, K, d)
    return [(spread * torch.randn(shape, generator=g)).requires_grad_() for shape in shapes]


def plain(q, k, v, causal=True, scale=None):
    """Torch's products and softmax in float64, masked where a query may not see a key: bottom right."""
    S, K = q.shape[2], k.shape[2]
    mask = torch.ones(S, K, dtype=torch.bool).tril(K - S if causal else K)
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(
            q.double(), k.double(), v.double(), attn_mask=mask, scale=scale, enable_gqa=True
        )


def run(fn, tensors, **how):
    y = fn(*tensors, **how)
    grad = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, tensors, grad)]


def close(ours, want, limit=1e-5):
    for name, a, b in zip(("output", "q", "k", "v"), ours, want, strict=True):
        size = max(b.double().norm().item(), 1.0)
        error = (a.double() - b.double()).norm().item() / size
        assert error < limit, f"{name}: relative error {error:.1e}"


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_values_and_gradients_equal_plain_attention(data):
    G, share = data.draw(st.integers(1, 2), "G"), data.draw(st.integers(1, 3), "queries a key head")
    S, K = data.draw(st.integers(1, 70), "S"), data.draw(st.integers(2, 70), "K")
    d, B = data.draw(st.integers(1, 40), "d"), data.draw(st.integers(1, 2), "B")
    how = {"causal": data.draw(st.booleans(), "causal"), "scale": data.draw(st.sampled_from([None, 0.3]), "scale")}
    tensors = draw(B, G * share, G, S, K, d, seed=data.draw(st.integers(0, 9), "seed"))
    close(run(attention, tensors, **how), run(plain, tensors, **how))


def test_one_key_is_the_answer_whatever_its_score():
    q, k, v = draw(1, 2, 1, 40, 1, 16)
    y, grad_q, grad_k, _ = run(attention, (q, k, v), causal=False)
    assert torch.equal(y, v.expand_as(y))
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 1e-4  # of one key, the softmax has no slope


def test_causal_is_aligned_at_the_bottom_right():
    """The last query sees every key. Torch's own `is_causal` is aligned at the top left, where the first sees one."""
    q, k, v = draw(1, 1, 1, 3, 50, 16)
    ours = attention(q, k, v)
    for s in range(3):
        sees = 50 - 2 + s
        want = plain(q[:, :, s : s + 1], k[:, :, :sees], v[:, :, :sees], causal=False)
        torch.testing.assert_close(ours[:, :, s : s + 1].double(), want, rtol=1e-5, atol=1e-6)
    theirs = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(theirs[0, 0, 0], v[0, 0, 0])
    assert not torch.allclose(ours, theirs, atol=1e-2)
    square = draw(1, 1, 1, 40, 40, 16)
    torch.testing.assert_close(attention(*square), scaled_dot_product_attention(*square, is_causal=True))


def test_a_query_that_sees_no_key_gets_zeros():
    tensors = draw(1, 2, 1, 75, 40, 8)
    y, grad_q, grad_k, grad_v = run(attention, tensors)
    assert not y[:, :, :35].any()
    assert not grad_q[:, :, :35].any()
    assert all(t.isfinite().all() for t in (y, grad_q, grad_k, grad_v))
    assert flash._attend(*tensors, True, 1.0)[1][:, :, :35].eq(-torch.inf).all()


@pytest.mark.parametrize(("S", "K"), [(0, 5), (5, 0), (0, 0)])
def test_no_queries_or_no_keys(S, K):
    tensors = draw(2, 2, 1, S, K, 8)
    y, *grads = run(attention, tensors, causal=False)
    assert y.shape == (2, 2, S, 8)
    assert not y.any()
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("d", [16, 24, 64, 80, 128, 200, 256])
def test_head_widths(d):
    tensors = draw(1, 2, 1, 37, 45, d)
    close(run(attention, tensors), run(plain, tensors))


@pytest.mark.filterwarnings("ignore:overflow")  # of keys beyond the last, which nothing stores
def test_the_running_maximum_is_needed():
    """Scores in the hundreds overflow an exponential that nothing was subtracted from."""
    q, k, v = draw(1, 1, 1, 40, 70, 16, spread=30.0)
    k.data[:, :, 60] *= 5  # a late key that is far above all before it
    close(run(attention, (q, k, v)), run(plain, (q, k, v)), 1e-3)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_scores_far_below_zero():
    """Beyond the last key a tile holds zeros, whose power below such a sum is infinite."""
    q, k, v = draw(1, 1, 1, 33, 33, 16)
    q.data, k.data = torch.full_like(q, 8.0), torch.full_like(k, -8.0) + 0.01 * k.data
    for causal in (False, True):
        ours, want = run(attention, (q, k, v), causal=causal), run(plain, (q, k, v), causal=causal)
        assert all(t.isfinite().all() for t in ours)
        close(ours, want, 1e-3)


def test_tensors_with_other_strides():
    q, k, v = draw(2, 4, 2, 37, 45, 24)
    want = run(attention, (q, k, v))
    layouts = [
        [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)],  # as a projection gives them
        [t.detach().mT.contiguous().mT for t in (q, k, v)],
        [torch.stack([t.detach()] * 2, -1).flatten(-2)[..., ::2] for t in (q, k, v)],
        [torch.nn.functional.pad(t.detach(), (1, 2))[..., 1:-2] for t in (q, k, v)],  # rows at odd places
    ]
    for tensors in layouts:
        assert not any(t.is_contiguous() for t in tensors)
        ours = run(attention, [t.requires_grad_() for t in tensors])
        assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))
    one = k.detach()[:, :1].expand(2, 2, 45, 24)
    torch.testing.assert_close(attention(q, one, one), attention(q, one.contiguous(), one.contiguous()))


def test_merging_the_heads_is_a_view():
    y = attention(*draw(2, 4, 2, 9, 9, 8))
    assert y.transpose(1, 2).reshape(2, 9, 32).untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert y.transpose(1, 2).is_contiguous()


def test_the_saved_number_is_the_logarithm_of_the_sum():
    q, k, v = (t.detach() for t in draw(1, 2, 2, 40, 70, 16))
    scores = (q.double() @ k.double().mT) * 0.25
    lse = flash._attend(q, k, v, False, 0.25)[1]
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_float16():
    tensors = [t.detach().half().requires_grad_() for t in draw(1, 2, 1, 40, 40, 16)]
    close(run(attention, tensors), run(plain, tensors), 5e-3)


def test_backward_keeps_the_inputs_the_output_and_one_number_a_query():
    q, k, v = draw(1, 2, 1, 64, 64, 16)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = attention(q, k, v)
    kept = [t.untyped_storage() for t in (q, k, v, y)]
    rest = [size for where, size in saved.items() if where not in {storage.data_ptr() for storage in kept}]
    assert rest == [4 * 2 * 64]  # nothing of 64 · 64


def test_only_what_is_asked_for_gets_a_gradient():
    q, k, v = draw(1, 2, 1, 20, 20, 8)
    want = run(attention, (q, k, v))
    for wanted in range(3):
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((q, k, v))]
        y = attention(*leaves)
        y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape))
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
        assert torch.equal(leaves[wanted].grad, want[1 + wanted])


def test_it_is_one_operator():
    q, k, v = draw(1, 2, 1, 20, 33, 8)
    torch.library.opcheck(flash._forward, (q, k, v, True, 0.3))
    torch.library.opcheck(flash._forward, (q.detach(), k.detach(), v.detach(), False, 0.3))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for a, b in zip(run(compiled, (q, k, v)), run(attention, (q, k, v)), strict=True):
        assert torch.equal(a, b)


def test_equal_inputs_give_equal_bits():
    tensors = draw(1, 4, 2, 70, 70, 16)
    first, second = run(attention, tensors), run(attention, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_derivative_is_refused():
    q, k, v = draw(1, 1, 1, 9, 9, 8)
    (grad,) = torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_torch_counts_flops_as_it_counts_its_own():
    q, k, v = draw(2, 2, 2, 20, 20, 8)
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v)
    assert counter.get_total_flops() == 2 * 2 * (2 * 2 * 20 * 20 * 8)
    with FlopCounterMode(display=False) as counter:
        run(attention, (q, k, v))
    assert counter.get_total_flops() == 7 * 2 * (2 * 2 * 20 * 20 * 8)


def test_a_tile_is_smaller_than_these_tests():
    """Else no test above would cross from one tile into the next."""
    assert max(INTERPRETED_BLOCK.queries, INTERPRETED_BLOCK.keys) < 33


def test_imported_first_it_is_interpreted_too():
    code = (
        "import torch; from labkit.kernels.attention import attention\n"
        "x = torch.ones(1, 1, 2, 4); print(attention(x, x, x).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "tensor(8.)", done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": torch.zeros(1, 3, 5, 8), "v": torch.zeros(1, 3, 5, 8)}, "with G a divisor of H"),
        ({"v": torch.zeros(1, 2, 6, 8)}, "queries, keys and values have shapes"),
        ({"q": torch.zeros(2, 5, 8)}, r"expected \[B, H, S, d\]"),
        ({"q": torch.zeros(1, 4, 5, 8).half()}, "give one dtype on one device"),
        ({"scale": 0.0}, r"scale is 0.0; give a positive number"),
        ({name: torch.zeros(1, 2, 5, 300) for name in "qkv"}, "heads are 300 wide; a tile holds at most 256"),
        ({name: torch.zeros(1, 2, 5, 8).double() for name in "qkv"}, "not float64"),
        ({name: torch.zeros(1, 2, 5, 8).bfloat16() for name in "qkv"}, "bfloat16"),
    ],
)
def test_bad_input_is_told(change, said):
    tensors = {"q": torch.zeros(1, 4, 5, 8), "k": torch.zeros(1, 2, 5, 8), "v": torch.zeros(1, 2, 5, 8)}
    scale = change.pop("scale", None)
    with pytest.raises(ValueError, match=said):
        attention(*{**tensors, **change}.values(), scale=scale)
