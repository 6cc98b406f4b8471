"""The specification itself: values by hand, laws that must hold, gradients in float64, bad input."""

import pytest
import torch
import torch.nn.functional as F

from labkit.kernels import reference as ref

T_SIZES = (0, 1, 7)
KS = ((5, 1), (5, 2), (4, 4))  # (E, K): K = 1, in between, K = E
EXPERTS = (ref.experts_loop, ref.experts_onehot, ref.experts_sorted)


def logits(T, E, seed=0, dtype=torch.float64):
    return torch.randn(T, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(T, E, K, D=3, F=2, *, empty=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    table = r(T, E)
    table[:, list(empty)] = float("-inf")
    return r(T, D), table.topk(K, dim=-1).indices, r(T, K).sigmoid(), r(E, 2 * F, D), r(E, D, F)


@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus", "topk_softmax"])
@pytest.mark.parametrize("T", T_SIZES)
@pytest.mark.parametrize(("E", "K"), KS)
@pytest.mark.parametrize("norm_topk", [True, False])
def test_route_gradient(score_fn, T, E, K, norm_topk):
    x = logits(T, E).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: ref.route(t, top_k=K, score_fn=score_fn, norm_topk=norm_topk, route_scale=1.5)[1], x
    )


@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_scores_stay_finite_and_exact(score_fn):
    x = torch.tensor([[1e4, -1e4, 0.0, 88.0]], requires_grad=True)
    y = ref.scores(x, score_fn)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert grad.isfinite().all()
    want = {
        "softmax": lambda v: v.double().softmax(-1),
        "sigmoid": lambda v: v.double().sigmoid(),
        "sqrtsoftplus": lambda v: F.softplus(v.double()).sqrt(),
    }[score_fn](x)
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_decided_in_float32(dtype):
    x = logits(7, 6, dtype=dtype)
    low, wide = ref.route(x, top_k=3), ref.route(x.float(), top_k=3)
    assert low[1].dtype == torch.float32
    assert torch.equal(low[0], wide[0])
    assert torch.equal(low[1], wide[1])


def test_bias_moves_the_choice_and_never_the_score():
    x, bias = logits(7, 6), torch.tensor([0, 0, 5.0, 0, 5.0, 0], dtype=torch.float64).requires_grad_()
    ids, scores = ref.route(x, top_k=2, score_fn="sigmoid", norm_topk=False, bias_E=bias)
    assert ids.sort(dim=1).values.tolist() == [[2, 4]] * 7
    assert torch.equal(scores, x.sigmoid().gather(1, ids))
    assert not scores.requires_grad


def test_best_first_by_biased_score_and_ties_to_the_lower_number():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert ref.select(scores, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    bias = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert ref.select(scores, 3, bias_E=bias).tolist() == [[3, 0, 1], [3, 0, 1]]


def test_renormalised_softmax_is_softmax_of_the_chosen():
    x = logits(7, 6)
    a, b = ref.route(x, top_k=3), ref.route(x, top_k=3, score_fn="topk_softmax")
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1])
    assert not torch.allclose(ref.route(x, top_k=3, norm_topk=False)[1], b[1])


def test_renormalise_survives_underflow():
    _ids, scores = ref.route(torch.full((1, 4), -1e4), top_k=2, score_fn="sigmoid")
    assert scores.tolist() == [[0.0, 0.0]]


def test_groups_by_hand():
    scores = torch.tensor([[0.9, 0.0, 0.5, 0.6, 0.1, 0.2]])
    pick = lambda **kw: ref.select(scores, 2, num_groups=3, top_groups=1, **kw).tolist()  # noqa: E731
    assert pick(group_score="max") == [[0, 1]]
    assert pick(group_score="top2_sum") == [[3, 2]]
    assert ref.select(scores, 2).tolist() == [[0, 3]]


def test_groups_see_the_bias_and_survive_negative_scores():
    scores, bias = torch.tensor([[0.9, 0.8, 0.1, 0.1]]), torch.tensor([-3.0, -3.0, -1.0, -1.0])
    got = ref.select(scores, 2, bias_E=bias, num_groups=2, top_groups=1, group_score="top2_sum")
    assert got.tolist() == [[2, 3]]


@pytest.mark.parametrize("fn", EXPERTS)
@pytest.mark.parametrize("T", T_SIZES)
@pytest.mark.parametrize(("E", "K"), KS)
def test_experts_agree_and_have_right_gradients(fn, T, E, K):
    x, ids, scores, up, down = problem(T, E, K, empty=(1,) if K < E else ())
    leaves = [t.requires_grad_() for t in (x, scores, up, down)]
    run = lambda x, s, u, d: fn(x, ids, s, u, d)  # noqa: E731
    want = torch.zeros(T, 3, dtype=torch.float64)
    for t in range(T):
        for k in range(K):
            e = ids[t, k]
            gate, value = (up[e] @ x[t]).chunk(2)
            want[t] += scores[t, k].detach() * (down[e] @ (gate * gate.sigmoid() * value)).detach()
    torch.testing.assert_close(run(*leaves), want)
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("fn", EXPERTS)
def test_an_idle_expert_gets_a_zero_gradient_and_dtype_is_kept(fn):
    x, ids, scores, up, down = problem(7, 5, 2, empty=(1, 3))
    up.requires_grad_()
    fn(x, ids, scores, up, down).sum().backward()
    assert [bool((g != 0).any()) for g in up.grad] == [True, False, True, False, True]
    half = fn(x.bfloat16(), ids, scores.float(), up.bfloat16(), down.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), fn(x, ids, scores, up, down), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("T", T_SIZES)
@pytest.mark.parametrize(("E", "K"), KS)
def test_sort_permute_combine_round_trip(T, E, K):
    x, ids, scores, *_ = problem(T, E, K)
    order, token, offsets = ref.sort_by_expert(ids, E)
    assert offsets.dtype == torch.int32
    assert torch.equal(offsets.long(), torch.bincount(ids.reshape(-1), minlength=E).cumsum(0))
    assert torch.equal(ids.reshape(-1)[order], ids.reshape(-1).sort().values)
    assert torch.equal(order // K, token)
    back = ref.combine(ref.permute(x, token), order, scores)
    torch.testing.assert_close(back, x * scores.sum(1, keepdim=True))
    s = scores.requires_grad_()
    y = ref.permute(x, token).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y, s: ref.combine(y, order, s), (y, s))


L = torch.zeros(2, 4)
I = torch.zeros(2, 2, dtype=torch.int64)
BAD = {
    "scores 3-D": (lambda: ref.scores(torch.zeros(1, 2, 3)), "flatten"),
    "scores int": (lambda: ref.scores(torch.zeros(2, 3, dtype=torch.int64)), "floating"),
    "score_fn": (lambda: ref.scores(L, "softmin"), "choose one of"),
    "top_k 0": (lambda: ref.route(L, top_k=0), "top_k is 0"),
    "top_k > E": (lambda: ref.select(L, 5), "within reach"),
    "top_k > reach": (lambda: ref.select(L, 3, num_groups=2, top_groups=1), "1 to 2"),
    "groups": (lambda: ref.select(L, 1, num_groups=3), "divide"),
    "top_groups": (lambda: ref.select(L, 1, num_groups=2, top_groups=3), "top_groups is 3"),
    "group_score": (lambda: ref.select(L, 1, group_score="mean"), "choose one of"),
    "top2 of one": (
        lambda: ref.select(L, 1, num_groups=4, top_groups=2, group_score="top2_sum"),
        "two experts in a group",
    ),
    "bias": (lambda: ref.select(L, 1, bias_E=torch.zeros(3)), "bias_E"),
    "weigh ids": (lambda: ref.weigh(L, I.int()), "int64"),
    "weigh name": (lambda: ref.weigh(L, I, score_fn="x"), "choose one of"),
    "swiglu": (lambda: ref.swiglu(L, torch.zeros(6, 4), torch.zeros(4, 2)), "do not fit"),
    "sort ids": (lambda: ref.sort_by_expert(I.float(), 4), "int64"),
    "sort 1-D": (lambda: ref.sort_by_expert(I[0], 4), "shape"),
    "sort E": (lambda: ref.sort_by_expert(I, 0), "num_experts"),
    "permute": (lambda: ref.permute(L, I), "int64 vector"),
    "combine": (lambda: ref.combine(L, torch.arange(2), torch.zeros(2, 2)), "expected 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_to_do(name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("fn", EXPERTS)
@pytest.mark.parametrize(
    ("which", "value", "words"),
    [
        (0, torch.zeros(7), "x_TD"),
        (0, torch.zeros(7, 3), "one dtype"),
        (1, torch.zeros(6, 2, dtype=torch.int64), "topk_ids_TK"),
        (2, torch.zeros(7, 3), "topk_scores_TK"),
        (3, torch.zeros(5, 3, 3, dtype=torch.float64), "gate_up_E2FD"),
        (4, torch.zeros(5, 2, 3, dtype=torch.float64), "down_EDF"),
    ],
)
def test_experts_refuse_what_does_not_fit(fn, which, value, words):
    given = list(problem(7, 5, 2))
    given[which] = value
    with pytest.raises(ValueError, match=words):
        fn(*given)
