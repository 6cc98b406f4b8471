"""Every lab's check must reject plausible wrong answers by name, and accept right ones written differently."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest

from labkit.course import attempt as attempts
from labkit.course import judge, labs
from labkit.course.attempt import Case, attempt, same
from labkit.course.exercise import GRADING_SEEDS, Exercise, _asked
from labkit.course.labs._03_oracles import switch_turns_away
from labkit.course.labs._kernel_mistakes import With
from labkit.kernels.language import triton

FOLDER = Path(__file__).parent.parent / "near_misses"
sys.path.insert(0, str(FOLDER))  # they share `edits`


def load(number: str):
    path = FOLDER / f"lab{number}.py"
    spec = importlib.util.spec_from_file_location(f"near_misses_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXERCISES = [exercise for number in labs.numbers() for exercise in labs.lab(number).exercises]
KERNELS = (triton.runtime.JITFunction, triton.runtime.interpreter.InterpretedFunction, With)
# Every known mistake of theirs is told by the cases of one seed alone.
TOLD_AT_ONCE = {"04.split_experts", "04.group_limited_top_k", "06.block", "06.placement", "06.sample"} | {
    exercise.id for exercise in EXERCISES if exercise.id[:2] in ("05", "07", "08", "12", "13")
}


@pytest.fixture(autouse=True, scope="module")
def remembered():
    """What answers the same case again is asked once: references and known mistakes dozens of times, kernels are slow.

    A case that several seeds have in common is one case. A kernel keeps nothing from one launch to the next, so it is
    remembered as an answer, too; Python functions are called each time they are judged.
    """
    known, drawn = {}, Exercise.inputs
    cases: dict[str, list[Case]] = {}

    def once(answer, case):
        _, _, outcome = known.setdefault((id(answer), id(case)), (answer, case, None))
        if outcome is None:
            outcome = attempt(answer, case)
            known[id(answer), id(case)] = (answer, case, outcome)
        return outcome

    def answered(answer, case):
        return once(answer, case) if type(answer) in KERNELS else attempt(answer, case)

    @functools.cache
    def inputs(exercise, seeds):
        mine = cases.setdefault(exercise.id, [])
        found = []
        for case in drawn(exercise, seeds):
            old = next((old for old in mine if old.label == case.label and same(_asked(old), _asked(case))), None)
            if old is None:
                mine.append(case)
            found.append(old or case)
        return tuple(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exercise, "inputs", inputs)
        patch.setattr(judge, "attempt", once)
        patch.setattr(attempts, "attempt", answered)
        yield


@pytest.fixture(params=EXERCISES, ids=lambda exercise: exercise.id)
def exercise(request):
    return request.param


def test_near_misses_are_rejected_each_by_its_own_name(exercise):
    wrong = load(exercise.id[:2]).NEAR_MISSES[exercise.id]
    assert len(wrong) >= 3
    names = [name for _, name in wrong]
    assert len(set(names)) == len(names), f"two near misses share a diagnosis: {names}"
    for answer, name in wrong:
        for seeds in ((0, 1), GRADING_SEEDS):
            verdict = exercise.test(answer, seeds)
            assert (verdict.status, verdict.diagnosis) == ("failed", name), f"{answer.__name__}: {verdict.says}"
            assert verdict.says


def test_right_answers_written_differently_are_accepted(exercise):
    right = load(exercise.id[:2]).RIGHT_ANSWERS[exercise.id]
    assert right
    for answer in right:
        verdict = exercise.test(answer)
        assert verdict.passed, f"{answer.__name__}: {verdict.diagnosis}: {verdict.says}"
        assert exercise.test(answer, GRADING_SEEDS).passed


def test_cases_cross_the_wall_of_a_graders_sandbox(exercise):
    """Inside there is no `labkit.course.labs`, so nothing that travels may come from there."""
    cases = exercise.inputs((0, 1))
    packed = pickle.dumps(cases)
    assert b"course.labs" not in packed
    for case in pickle.loads(packed):
        outcome = attempt(exercise.reference, case)
        assert outcome.status == "value" or outcome.error_type == "ValueError"  # a refusal, as some cases want


def test_reference_passes_and_agrees_with_its_oracle(exercise):
    assert exercise.test(exercise.reference, (5, 6, 7)).passed
    if exercise.id == "03.keep" and not switch_turns_away():
        pytest.skip("the Switch router of this transformers never turns a token away")
    if exercise.oracle is not None:
        assert exercise.against_oracle(exercise.reference, (5, 6)) > 0


def test_blank_is_not_attempted(exercise):
    def blank(*args, **kwargs):
        raise NotImplementedError

    assert exercise.test(blank).status == "blank"


def test_every_named_mistake_is_really_wrong(exercise):
    for mistake in exercise.mistakes:
        if mistake.like is not None:
            verdict = exercise.test(mistake.like)
            assert (verdict.status, verdict.diagnosis) == ("failed", mistake.name)


@pytest.mark.parametrize("id", sorted(TOLD_AT_ONCE))
def test_one_practice_seed_is_enough_to_tell_every_mistake(id):
    exercise = labs.find(id)
    for mistake in exercise.mistakes:
        if mistake.like is not None:
            assert exercise.test(mistake.like, (0,)).diagnosis == mistake.name


def test_near_misses_name_only_exercises_that_exist():
    for number in labs.numbers():
        ids = {exercise.id for exercise in labs.lab(number).exercises}
        module = load(number)
        assert set(module.NEAR_MISSES) == set(module.RIGHT_ANSWERS) == ids
