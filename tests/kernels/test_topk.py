"""The fused router decides as the reference does: ids, scores, counts and the logits' gradient, in the interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.config import SCORE_FNS
from labkit.kernels import dispatch, reference, routes, topk

INF = float("inf")


def check(logits, **options):
    logits = logits.clone().requires_grad_()
    ids, weights = reference.route(logits, **options)
    ours, our_weights, counts = topk.route(logits, **options)
    assert torch.equal(ours, ids)
    torch.testing.assert_close(our_weights, weights, rtol=1e-5, atol=1e-6)
    assert torch.equal(counts, torch.bincount(ids.reshape(-1), minlength=logits.shape[1]))
    grad = torch.cos(torch.arange(weights.numel(), dtype=torch.float32)).view(weights.shape)
    want, got = (torch.autograd.grad(w, logits, grad)[0] for w in (weights, our_weights))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_decides_as_the_reference(data):
    groups = data.draw(st.sampled_from([1, 1, 2, 3, 4]), "groups")
    size = data.draw(st.integers(2 if groups > 1 else 1, 17), "experts a group")
    top = data.draw(st.integers(1, groups), "top groups")
    E, T = groups * size, data.draw(st.integers(0, 40), "T")
    K = data.draw(st.integers(1, min(8, top * size)), "K")
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    bias = torch.randn(E, generator=g) / 4 if data.draw(st.booleans(), "bias") else None
    check(
        2 * torch.randn(T, E, generator=g), top_k=K, score_fn=data.draw(st.sampled_from(SCORE_FNS)), bias_E=bias,
        norm_topk=data.draw(st.booleans()), route_scale=data.draw(st.sampled_from([1.0, 2.5])), num_groups=groups,
        top_groups=top, group_score=data.draw(st.sampled_from(["max", "top2_sum"])),
    )  # fmt: skip


@pytest.mark.parametrize("score_fn", SCORE_FNS)
def test_equal_scores_go_to_the_lower_number(score_fn):
    logits = torch.zeros(3, 7)
    logits[1, 5] = 1
    logits[2] = torch.tensor([-0.0, 0.0, -0.0, 0.0, -0.0, 0.0, 0.0])
    ids, _, _ = topk.route(logits, top_k=3, score_fn=score_fn)
    assert ids.tolist() == [[0, 1, 2], [5, 0, 1], [0, 1, 2]]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_expert_that_is_masked_comes_last():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 2] = -INF
    for score_fn in ("softmax", "sigmoid", "topk_softmax"):
        ids, weights, _ = topk.route(logits, top_k=6, score_fn=score_fn)
        want, want_weights = reference.route(logits, top_k=6, score_fn=score_fn)
        assert torch.equal(ids, want)
        assert ids[:, -1].tolist() == [2] * 4
        torch.testing.assert_close(weights, want_weights)


@pytest.mark.filterwarnings("ignore:overflow")
def test_large_logits_stay_finite():
    logits = torch.tensor([[1000.0, -1000.0, 0.0], [88.0, 89.0, -104.0]])
    for score_fn in SCORE_FNS:
        check(logits, top_k=2, score_fn=score_fn)


def test_logits_that_are_not_contiguous():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(topk.route(logits, top_k=2)[0], reference.route(logits, top_k=2)[0])


def test_it_is_one_operator():
    logits = torch.randn(9, 6, requires_grad=True)
    torch.library.opcheck(topk._forward, (logits, None, 2, "softmax", True, 1.0, 1, 1, False))
    compiled = torch.compile(lambda x: topk.route(x, top_k=2), backend="aot_eager", fullgraph=True)
    for ours, want in zip(compiled(logits), topk.route(logits, top_k=2), strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 9}, "top_k is 9; give 1 to 8"),
        ({"top_k": 2, "score_fn": "max"}, "score_fn is 'max'; choose one of"),
        ({"top_k": 2, "num_groups": 3}, "num_groups is 3, which does not divide 8"),
        ({"top_k": 2, "bias_E": torch.zeros(7)}, r"bias_E has shape \(7,\); expected \(8,\)"),
    ],
)
def test_bad_input_is_told(options, said):
    with pytest.raises(ValueError, match=said):
        topk.route(torch.zeros(3, 8), **options)


@pytest.mark.parametrize("centre", [-100.0, -60.0, -25.0, -18.0, -10.0, 30.0])
@pytest.mark.parametrize("norm_topk", [False, True])
def test_softplus_keeps_its_digits_far_from_zero(centre, norm_topk):
    """log(1 + y) forgets a y below 6e-8, and with it which expert is best."""
    logits = centre + torch.randint(-16, 17, (20, 12), generator=torch.Generator().manual_seed(0)) / 8
    options = {"top_k": 3, "score_fn": "sqrtsoftplus", "norm_topk": norm_topk}
    leaf = logits.clone().requires_grad_()
    ids, weights, _ = topk.route(leaf, **options)
    wide = logits.double().requires_grad_()
    want_ids, want = reference.route(wide, **options)
    assert torch.equal(ids, want_ids)
    assert ((weights - want).norm() / want.norm()).item() < 1e-6
    pull = torch.cos(torch.arange(want.numel(), dtype=torch.float64)).view(want.shape)
    ours = torch.autograd.grad(weights, leaf, pull.float())[0]
    theirs = torch.autograd.grad(want, wide, pull)[0]
    assert ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item() < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_many_equal_scores_and_groups(data):
    """Logits from a grid of seven values: most rows have ties inside and between groups."""
    groups = data.draw(st.sampled_from([1, 2, 3, 5]), "groups")
    E = groups * data.draw(st.integers(2, 7), "experts a group")
    top = data.draw(st.integers(1, groups), "top groups")
    K = data.draw(st.integers(1, top * (E // groups)), "K")
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    logits = torch.randint(-3, 4, (9, E), generator=g) / 2
    if data.draw(st.booleans(), "masked"):
        logits[torch.rand(logits.shape, generator=g) < 0.2] = -INF
        logits[:, 0] = 0.5  # a row of −∞ alone has no softmax
    options = {
        "top_k": K, "score_fn": data.draw(st.sampled_from(SCORE_FNS)), "num_groups": groups, "top_groups": top,
        "group_score": data.draw(st.sampled_from(["max", "top2_sum"])),
        "bias_E": torch.randint(-2, 3, (E,), generator=g) / 4 if data.draw(st.booleans(), "bias") else None,
    }  # fmt: skip
    ids, weights, counts = topk.route(logits, **options)
    want, want_weights = reference.route(logits, **options)
    assert torch.equal(ids, want)
    torch.testing.assert_close(weights, want_weights, rtol=1e-5, atol=1e-6)
    assert torch.equal(counts, torch.bincount(want.reshape(-1), minlength=E))


@pytest.mark.parametrize(("T", "E", "K"), [(0, 5, 2), (1, 5, 2), (3, 1, 1), (3, 5, 5), (2, 33, 33), (600, 3, 2)])
@pytest.mark.parametrize("score_fn", SCORE_FNS)
def test_sizes_at_the_edge(T, E, K, score_fn):
    check(torch.randn(T, E, generator=torch.Generator().manual_seed(0)), top_k=K, score_fn=score_fn)


def test_float16_logits():
    logits = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    ids, weights, _ = topk.route(logits, top_k=3)
    want, want_weights = reference.route(logits, top_k=3)
    assert torch.equal(ids, want)
    assert weights.dtype == torch.float32
    pull = torch.cos(torch.arange(21.0)).view(7, 3)
    ours, theirs = (torch.autograd.grad(w, logits, pull)[0] for w in (weights, want_weights))
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("score_fn", SCORE_FNS)
def test_a_nan_shows_and_still_names_experts(score_fn):
    """What diverged must be seen in the scores, never as ids that point outside of the experts."""
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    logits[1], logits[2, 4] = float("nan"), float("nan")
    ids, weights, counts = topk.route(logits, top_k=3, score_fn=score_fn)
    assert all(len(set(row)) == 3 and set(row) <= set(range(6)) for row in ids.tolist())
    assert counts.sum() == 9
    assert weights[1:].isnan().any(dim=1).all()
    assert weights[0].isfinite().all()


def test_the_bias_moves_choices_and_gets_no_gradient():
    logits = torch.zeros(4, 5, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0, 1.0, -INF], requires_grad=True)
    ids, weights, _ = topk.route(logits, top_k=4, bias_E=bias)
    assert ids.tolist() == [[3, 0, 1, 2]] * 4
    torch.testing.assert_close(weights, torch.full((4, 4), 0.25))
    weights[:, 0].sum().backward()
    assert bias.grad is None
    assert logits.grad is not None


def test_only_logits_and_ids_are_kept_for_backward():
    logits, saved = torch.randn(50, 16, requires_grad=True), []

    def note(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ids, _, _ = topk.route(logits, top_k=2)
    assert sorted(t.data_ptr() for t in saved) == sorted((logits.data_ptr(), ids.data_ptr()))


@pytest.mark.parametrize(
    "given_",
    [
        (torch.zeros(3, 8), {"top_k": 0}),
        (torch.zeros(3, 8), {"top_k": 3, "num_groups": 4, "top_groups": 1}),
        (torch.zeros(3, 8), {"top_k": 1, "num_groups": 8, "top_groups": 1, "group_score": "top2_sum"}),
        (torch.zeros(3, 8), {"top_k": 1, "num_groups": 2, "top_groups": 3}),
        (torch.zeros(3, 8), {"top_k": 1, "group_score": "mean"}),
        (torch.zeros(8), {"top_k": 1}),
        (torch.zeros(3, 8, dtype=torch.int64), {"top_k": 1}),
    ],
)
def test_the_reference_says_the_same(given_):
    logits, options = given_
    with pytest.raises(ValueError) as theirs:
        reference.route(logits, **options)
    with pytest.raises(ValueError) as ours:
        topk.route(logits, **options)
    assert str(ours.value) == str(theirs.value)


def test_who_decides_is_chosen_forced_and_told():
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert routes.choose(logits) == routes.Choice(
        "reference", "triton cannot: its kernel needs a GPU; asked for, it runs on a CPU too, interpreted"
    )
    assert routes.choose(logits, "triton").reason == "asked for"
    with routes.force("triton"):
        assert routes.choose(logits, "reference").reason == "forced"
        ours = dispatch.route(logits, top_k=2)
    for a, b in zip(ours, dispatch.route(logits, top_k=2), strict=True):
        torch.testing.assert_close(a, b)
    for call in (lambda: routes.choose(logits, "magic"), lambda: routes.force("magic")):
        with pytest.raises(ValueError, match="implementation is 'magic'; choose"):
            call()
    with pytest.raises(ValueError, match=r"triton cannot route this: .* not float64"):
        dispatch.route(logits.double(), top_k=2, implementation="triton")
    with pytest.raises(ValueError, match="triton cannot route this: there are 2000 experts, more than 1024"):
        dispatch.route(torch.zeros(1, 2000), top_k=2, implementation="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("E", "K"), [(8, 2), (60, 4), (64, 8), (160, 6), (256, 8), (384, 8)])
def test_on_a_gpu(E, K, dtype):
    g = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(3000, E, generator=g, device="cuda").to(dtype).requires_grad_()
    for options in ({}, {"score_fn": "sigmoid", "bias_E": torch.randn(E, generator=g, device="cuda") / 9},
                    {"score_fn": "sqrtsoftplus", "norm_topk": False}, {"score_fn": "topk_softmax"}):  # fmt: skip
        ids, weights = reference.route(logits, top_k=K, **options)
        ours, our_weights, counts = topk.route(logits, top_k=K, **options)
        again = topk.route(logits, top_k=K, **options)
        assert all(torch.equal(a, b) for a, b in zip((ours, our_weights, counts), again, strict=True))
        torch.testing.assert_close(our_weights.sort().values, weights.sort().values, rtol=2e-5, atol=1e-6)
        same = (ours == ids).all(dim=1)  # scores that differ in their last bit may change places
        assert same.float().mean() > 0.999
        assert torch.equal(counts, torch.bincount(ours.reshape(-1), minlength=E))
        grad = torch.randn(weights.shape, generator=g, device="cuda")
        want, got = (torch.autograd.grad(w, logits, grad)[0][same] for w in (weights, our_weights))
        assert ((got - want).double().norm() / want.double().norm()).item() < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.gpu
def test_on_a_gpu_without_a_graph_break_and_in_a_cuda_graph():
    logits = torch.randn(500, 64, device="cuda")
    want = topk.route(logits, top_k=8)
    for ours in (torch.compile(lambda x: topk.route(x, top_k=8), fullgraph=True)(logits),):
        assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours = topk.route(logits, top_k=8)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))
