"""The judge compares plain data only, finds the smallest failing input, and names the mistake."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from labkit.course.attempt import Case, Outcome, attempt, attempt_all, same
from labkit.course.difference import difference
from labkit.course.judge import Judge, Mistake, Verdict

CASES = tuple(Case((torch.arange(1.0, n + 1),), label=f"{n} numbers") for n in (1, 2, 5))


def share(x):
    return x / x.sum()


JUDGE = Judge(
    share,
    (
        Mistake("mean", "You divided by the mean.", like=lambda x: x / x.mean()),
        Mistake("too_big", "The first share is above one.", when=lambda failure: failure.got[0] > 1),
    ),
)


def verdict(answer) -> Verdict:
    return JUDGE(CASES, attempt_all(answer, CASES))


def test_right_answer_passes():
    assert verdict(lambda x: x / torch.sum(x, dim=-1)).passed


def test_mistake_is_named_with_the_smallest_failing_case():
    found = verdict(lambda x: x * len(x) / x.sum())
    assert (found.diagnosis, found.failure.case.label) == ("mean", "2 numbers")


def test_the_same_type_of_error_alone_explains_nothing():
    judge = Judge(share, (Mistake("lookup", "You looked beyond the end.", like=lambda x: x[99]),))
    assert judge(CASES, attempt_all(lambda x: [][3], CASES)).diagnosis == "raises"
    assert judge(CASES, attempt_all(lambda x: x[99], CASES)).diagnosis == "lookup"


def test_a_mistake_that_explains_one_failure_of_many_is_not_named():
    first = Mistake("first", "Only right by chance.", like=lambda x: x + len(x) - 1)
    judge = Judge(lambda x: 2 * x, (first,))
    assert judge(CASES, attempt_all(lambda x: x + 1 if len(x) == 2 else x * 3, CASES)).diagnosis == "wrong_values"


def test_predicate_recognises_what_no_implementation_does():
    assert verdict(lambda x: x + 3).diagnosis == "too_big"


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda x: print(x), "returns_nothing"),
        (lambda x: sys.exit(), "raises"),
        (lambda x: "0.5", "wrong_type"),
        (lambda x: x.numpy(), "wrong_type"),
        (lambda x: x[:, None] / x.sum(), "wrong_shape"),
        (lambda x: (x / x.sum()).double(), "wrong_dtype"),
        (lambda x: x.div_(x.sum()), "changes_input"),
        (lambda x: 1 / 0, "raises"),
        (lambda x: x * 0, "wrong_values"),
        (lambda x: x / x.sum() * float("nan"), "wrong_values"),
        (lambda x: object(), "wrong_type"),
    ],
)
def test_general_diagnoses(answer, diagnosis):
    assert verdict(answer).diagnosis == diagnosis


def test_blank_and_half_blank():
    def half(x):
        if len(x) > 1:
            raise NotImplementedError
        return share(x)

    def blank(x):
        raise NotImplementedError

    assert verdict(blank).status == "blank"
    assert verdict(half).diagnosis == "unfinished"


class EqualToAll:
    def __eq__(self, other):
        return True

    __hash__ = None


class LyingTensor(torch.Tensor):
    def __eq__(self, other):
        return torch.tensor(True)

    __hash__ = torch.Tensor.__hash__


@pytest.mark.parametrize("cheat", [EqualToAll(), torch.ones(1).as_subclass(LyingTensor)])
def test_objects_that_equal_everything_do_not_pass(cheat):
    assert verdict(lambda x: cheat).status == "failed"
    for expected in (torch.ones(1), 1, 1.0, "a", None, True, [1], {"a": 1}):
        assert difference(cheat, expected, 1e-4, 1e-5) is not None


def test_a_reference_that_refuses_wants_the_same_refusal():
    def root(x):
        if x < 0:
            raise ValueError("negative")
        return x**0.5

    judge, cases = Judge(root), (Case((4.0,)), Case((-1.0,)))
    assert judge(cases, attempt_all(root, cases)).passed
    assert judge(cases, attempt_all(lambda x: abs(x) ** 0.5, cases)).diagnosis == "accepts_bad_input"


def test_a_broken_reference_is_our_fault_and_says_so():
    with pytest.raises(RuntimeError, match="the reference failed"):
        Judge(lambda x: 1 / 0)((Case((1,)),), (Outcome("value", 1),))


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda n: {"a": n, "b": 1}, None),
        (lambda n: {"a": np.int64(n), "b": np.int64(1)}, None),
        (lambda n: {"a": n}, "missing_keys"),
        (lambda n: {"a": n, "b": 1, "c": 0}, "unknown_keys"),
        (lambda n: {"a": float(n), "b": 1}, "float_for_integer"),
        (lambda n: {"a": str(n), "b": 1}, "wrong_type"),
        (lambda n: n, "wrong_type"),
    ],
)
def test_dicts_and_whole_numbers(answer, diagnosis):
    cases = (Case((3,)), Case((4,)))
    found = Judge(lambda n: {"a": n, "b": 1})(cases, attempt_all(answer, cases))
    assert found.passed if diagnosis is None else found.diagnosis == diagnosis


@pytest.mark.parametrize("answer", [lambda x: share(x.detach()), lambda x: torch.tensor(share(x).tolist())])
def test_an_answer_that_cuts_the_graph_is_found(answer):
    cases = (*CASES, Case((torch.arange(1.0, 5),), needs_grad=True))
    assert JUDGE(cases, attempt_all(share, cases)).passed
    assert JUDGE(cases, attempt_all(answer, cases)).diagnosis == "cuts_graph"
    assert JUDGE(CASES, attempt_all(answer, CASES)).passed


def test_every_input_that_should_be_reached_must_be():
    cases = (Case((torch.ones(3), torch.ones(3)), needs_grad=True),)
    judge = Judge(lambda a, b: a * b)
    assert judge(cases, attempt_all(lambda a, b: b * a, cases)).passed
    assert judge(cases, attempt_all(lambda a, b: a * b.detach(), cases)).diagnosis == "cuts_graph"
    relaxed = Judge(lambda a, b: a * b.detach())
    assert relaxed(cases, attempt_all(lambda a, b: a * b, cases)).passed


def test_refusals_are_told_apart():
    def refuse(x):
        raise ValueError("too small")

    def other(x):
        raise IndexError("x")

    cases = (Case((1,)),)
    judge = Judge(refuse)
    assert judge(cases, attempt_all(other, cases)).diagnosis == "raises_another"
    assert judge(cases, attempt_all(lambda x: ValueError("x"), cases)).diagnosis == "returns_the_error"
    assert judge(cases, attempt_all(lambda x: x, cases)).diagnosis == "accepts_bad_input"


def test_outcomes_must_match_cases():
    with pytest.raises(ValueError, match="2 outcomes for 3 cases"):
        JUDGE(CASES, attempt_all(share, CASES[:2]))


def test_mistake_needs_a_way_to_be_recognised():
    with pytest.raises(ValueError, match="can never be recognised"):
        Mistake("name", "says")


def test_reference_must_return_plain_data():
    with pytest.raises(TypeError, match="return plain data"):
        difference(1, object(), 0, 0)


@pytest.mark.parametrize(
    ("got", "expected", "agree"),
    [
        (1, 1.0, True),
        (torch.tensor(3), 3, True),
        (True, 1, False),
        (1, True, False),
        (float("nan"), float("nan"), True),
        ((1, 2), [1, 2], True),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1}, True),
        ({"b": 1}, {"a": 1}, False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (1.0, 1.000001, True),
        (1.1, 1.0, False),
        (10**999, 1.0, False),
        (10**999, 1, False),
        (float("inf"), 1.0, False),
        (float("inf"), float("inf"), True),
        ({1: 1, "b": 1}, {"a": 1}, False),
    ],
)
def test_difference(got, expected, agree):
    assert (difference(got, expected, 1e-4, 1e-5) is None) == agree


def test_attempts_do_not_share_inputs_or_randomness():
    case = Case((torch.ones(3),))
    before = torch.random.get_rng_state()
    one, two = attempt(lambda x: x.add_(torch.rand(3)), case), attempt(lambda x: x.add_(torch.rand(3)), case)
    assert same(one.value, two.value)
    assert one.changed_input
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(case.args[0], torch.ones(3))


def test_class_answers_are_constructed_first():
    class Adder:
        def __init__(self, n):
            self.n = n

        def __call__(self, x):
            return x + self.n

    assert attempt(Adder, Case((1,), init=(2,))).value == 3


def test_named_tuples_of_torch_are_tuples():
    outcome = attempt(lambda x: torch.topk(x, 1), Case((torch.tensor([1.0, 3.0]),)))
    assert type(outcome.value) is tuple
