"""What crosses the sandbox's wall, and the marking around it, without a kernel."""

from __future__ import annotations

import base64
import json
import os

import pytest
import torch

from labkit.course import marking
from labkit.course.attempt import Outcome, same
from labkit.course.marking import Answer, flags, mark_answers
from labkit.course.probe import Unreadable, decode, encode, probe_code, read_outcomes
from labkit.course.sandbox import Reply, sandbox_command

# --------------------------------------------------------------------------------------------------- across the wall

PLAIN = [
    None, True, False, 3, -(10**30), 1.5, float("inf"), "text", [1, "a"], (1, (2.0,)), {"a": [1], 2: None},
    torch.arange(6).reshape(2, 3), torch.empty(2, 0), torch.tensor(1.5), torch.tensor([True, False]),
    torch.linspace(-1, 1, 3).bfloat16(), torch.arange(12.0).reshape(4, 3).t(), torch.tensor([1 + 2j, 3 - 4j]).conj(),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=[str(i) for i in range(len(PLAIN))])
def test_plain_data_crosses_unchanged(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert same(back, value.resolve_conj() if isinstance(value, torch.Tensor) else value)


def test_other_objects_cross_as_their_type_only():
    class Sneaky(int):
        def __reduce__(self):
            return os.system, ("true",)

    back = decode(encode(Sneaky(3)))
    assert type(back).__name__ == "Sneaky"
    assert not isinstance(back, int)
    assert type(decode(encode(torch.nn.Parameter(torch.ones(1))))).__name__ == "Parameter"


def test_nan_crosses():
    value = decode(encode(float("nan")))
    assert value != value


NONCE = "n" * 32
GOOD = {
    "status": "value",
    "value": {"int": "1"},
    "error_type": "",
    "error": "",
    "changed_input": False,
    "reached": [],
}


def framed(body) -> str:
    return f"noise{NONCE}{body if isinstance(body, str) else json.dumps(body)}{NONCE}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        NONCE,
        framed({"outcomes": [GOOD]}) * 2,
        framed("no json"),
        framed("[" * 100_000),
        framed([1]),
        framed({"outcomes": [GOOD, GOOD]}),
        framed({"outcomes": []}),
        framed({"outcomes": [{**GOOD, "status": "passed"}]}),
        framed({"outcomes": [{**GOOD, "changed_input": 0}]}),
        framed({"outcomes": [{**GOOD, "error": None}]}),
        framed({"outcomes": [{**GOOD, "value": {"pickle": "gASVAAAA"}}]}),
        framed({"outcomes": [{**GOOD, "value": {"int": 1}}]}),
        framed({"outcomes": [{**GOOD, "value": {"int": "1", "str": "a"}}]}),
        framed({"outcomes": [{**GOOD, "value": {"int": "9" * 5000}}]}),
        framed({"outcomes": [{**GOOD, "value": {"dict": [[{"list": []}, {"int": "1"}]]}}]}),
        framed({"outcomes": [{**GOOD, "value": {"tensor": ["float32", [2], "AAAAAA=="]}}]}),
        framed({"outcomes": [{**GOOD, "value": {"tensor": ["float32", [-1, -1], "AAAAAA=="]}}]}),
        framed({"outcomes": [{**GOOD, "value": {"tensor": ["float32", [True], "AAAAAA=="]}}]}),
        framed({"outcomes": [{**GOOD, "value": {"tensor": ["object", [1], "AAAAAA=="]}}]}),
        framed({"outcomes": [{**GOOD, "value": {"tensor": ["float32", [1], "!"]}}]}),
    ],
    ids=range(21),
)
def test_anything_else_is_unreadable(text):
    with pytest.raises(Unreadable):
        read_outcomes(text, NONCE, 1)


def test_outcomes_are_read():
    (outcome,) = read_outcomes(framed({"outcomes": [GOOD]}), NONCE, 1)
    assert (outcome.status, outcome.value) == ("value", 1)
    assert read_outcomes(framed({"missing": True}), NONCE, 1) is None
    (blank,) = read_outcomes(framed({"outcomes": [{**GOOD, "status": "blank"}]}), NONCE, 5)
    assert isinstance(blank, Outcome)


def test_the_probe_carries_neither_reference_nor_expected_values(tiny):
    exercise = tiny.lab.exercises[0]
    code = probe_code(exercise.name, exercise.inputs([5]), NONCE)
    for value in ("reference", "judge", "chain"):
        assert value not in code
    packed = base64.b64decode(code.split("'")[5])
    assert b"reference" not in packed
    assert b"lab98" not in packed


def test_the_command_hides_labs_and_keeps_the_shared_folder(tmp_path):
    command = " ".join(sandbox_command(tmp_path, hidden=(tmp_path.parent,)))
    assert "--unshare-all" in command
    assert "--cap-drop ALL" in command
    assert "course/labs --remount-ro" in command
    assert f"--bind {tmp_path} {tmp_path}" in command
    assert f"--remount-ro {tmp_path.parent.resolve()} " not in command


# --------------------------------------------------------------------------------------------------------- marking


class FakeSession:
    """A kernel that answers as it is told."""

    def __init__(self, replies):
        self.replies, self.ran = replies, []

    def run(self, code, timeout):
        self.ran.append(code)
        return self.replies.pop(0) if self.replies else Reply("ok")

    def close(self):
        self.replies = None


def test_a_setup_cell_that_fails_is_nobodys_mistake(tiny):
    answer = Answer(tiny.lab.exercises[0], "def times_2(x): return 2 * x")
    with pytest.raises(marking.MarkingError, match=r"a setup cell of this lab ends with 'error'.*boom"):
        mark_answers(["import x"], [answer], lambda: FakeSession([Reply("error", "", "ImportError", "boom")]))
    with pytest.raises(ValueError, match="timeout is -1"):
        mark_answers([], [answer], timeout=-1)


def test_missing_cells_and_floods(tiny):
    exercise = tiny.lab.exercises[0]
    (missing,) = mark_answers([], [Answer(exercise, None)], lambda: FakeSession([]))
    assert (missing.verdict.status, missing.verdict.diagnosis) == ("failed", "missing")
    (flood,) = mark_answers([], [Answer(exercise, "x")], lambda: FakeSession([Reply("ok"), Reply("flood")]))
    assert flood.verdict.diagnosis == "prints_too_much"


def test_a_cell_that_breaks_only_the_second_time_is_left_out(tiny):
    first, second, third = tiny.lab.exercises[:3]
    answers = [Answer(first, "fickle"), Answer(second, "endless"), Answer(third, "third")]
    sessions = [
        FakeSession([Reply("ok"), Reply("ok"), Reply("ok"), Reply("ok"), Reply("timeout")]),
        FakeSession([Reply("dead")]),
        FakeSession([]),
    ]
    opened = iter(sessions)
    marks = mark_answers([], answers, lambda: next(opened))
    assert marks[1].verdict.diagnosis == "endless"
    assert sessions[1].ran == ["fickle"]
    assert sessions[2].ran[1] == "third"


def test_inputs_are_fresh_each_time(tiny):
    sessions = [FakeSession([]), FakeSession([])]
    for session in sessions:
        mark_answers([], [Answer(tiny.lab.exercises[0], "x")], lambda s=session: s)
    first, second = (session.ran[2].split("'")[5] for session in sessions)
    assert first != second


def test_flags(tiny):
    exercise = tiny.lab.exercises[0]
    setup = ["from labkit.kernels import reference\nfrom labkit.core.routing import Routing\nimport torch"]

    def found(source, stub=""):
        return flags(Answer(exercise, source, stub), setup)

    assert found("def times_2(x):\n    return reference.times_2(x)") == ("uses labkit (reference)",)
    assert found("import labkit.nn.router as r") == ("uses labkit (labkit.nn.router)",)
    assert found("__import__('labkit.kernels')") == ("uses labkit (labkit.kernels)",)
    assert found("def f(x: Routing): return torch.ones(1)", "def f(x: Routing): ...") == ()
    assert found("def (") == ()
