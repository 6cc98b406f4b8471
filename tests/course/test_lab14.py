"""Lab 14: references against labkit's own engine and NumPy, and what its harness for streams says."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig
from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.hosted import Hosted, flawed_engine
from labkit.course.labs._14_clinic import FAULTS, chart
from labkit.course.labs._14_diagnoses import DIAGNOSES, SUSPECTS, clinic
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.course.streamed import StandIn, arrived, data_of, elsewhere, relayed, released
from labkit.nn import Transformer
from labkit.serve.engine import SamplingParams, loading
from labkit.serve.scheduler import Full

EXERCISES = {exercise.name: exercise for exercise in labs.lab("14").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


# ------------------------------------------------------------------------------------------------- what references do


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_cuts(size):
    stream = "data: Ωμέγα\r\n\r\n: x\n\ndata: a\ndata: b\n\ndata: [DONE]\n\ndata: c\n\n".encode()
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert list(PART["events"](iter(chunks))) == ["Ωμέγα", "a\nb"]


def test_a_stop_ends_the_same_answer_wherever_it_is_cut():
    draw = torch.Generator().manual_seed(3)
    for _ in range(200):
        text = "".join("ab"[i] for i in torch.randint(2, (24,), generator=draw).tolist())
        stops = tuple({text[at : at + 3] for at in torch.randint(18, (2,), generator=draw).tolist()} | {"aabba"})
        cuts = [0, *sorted(torch.randint(24, (5,), generator=draw).tolist()), 24]
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        whole = "".join(PART["until_stop"](iter([text]), stops))
        assert "".join(PART["until_stop"](iter(pieces), stops)) == whole
        assert not any(stop in whole for stop in stops)


def test_a_bucket_lets_through_what_flows_in_and_waits_just_long_enough():
    level, through = 100.0, 0
    for _ in range(1000):
        level, wait = PART["admit"](level, 0.5, 30, 40.0, 100)
        through += 30 * (wait == 0)
        if wait:
            assert PART["admit"](level, wait, 30, 40.0, 100)[1] == 0
            assert PART["admit"](level, wait - 1, 30, 40.0, 100)[1] > 0
    assert through <= 100 + 1000 * 0.5 * 40
    assert through > 1000 * 0.5 * 40 - 30


def test_tokens_are_drawn_from_the_softmax_and_steps_are_independent():
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf])
    N = 6000
    keys = torch.tensor([[4, 0, i] for i in range(N)])
    ids = PART["draw"](logits.expand(N, -1), torch.full((N,), 2.0), keys)
    share = torch.bincount(ids, minlength=4) / N
    torch.testing.assert_close(share, (logits / 2).softmax(-1), atol=0.02, rtol=0)
    same = (ids[1:] == ids[:-1]).float().mean()
    assert abs(same - (share**2).sum()) < 0.02


def test_a_quantile_lies_between_its_edges_and_the_truth_does_too():
    values = np.random.default_rng(1).lognormal(-2, 1, 500)
    edges = [0.05, 0.1, 0.2, 0.4, 0.8, math.inf]
    counts = [int((values <= edge).sum()) for edge in edges]
    for q in np.linspace(0.01, 1, 50):
        about, low, high = PART["quantile"](float(q), edges, counts)
        true = np.quantile(values, q, method="inverted_cdf")
        assert low <= about <= high
        assert low < true <= high


# --------------------------------------------------------------------------------------------------------- the harness


def test_what_was_asked_for_is_counted():
    assert arrived(lambda chunks: iter(list(chunks)), [b"a"]) == {"events": [b"a"], "after chunk": [2], "asked for": 2}
    assert released(lambda pieces, stops: [next(pieces)], ["a", "b"], ()) == ["a"]
    assert released(lambda pieces, stops: None, ["a"], ()) is None


def test_the_stand_in_holds_blocks_until_it_is_told():
    async def held():
        engine = StandIn(["a", "b"])
        answer = engine.submit("x")
        await anext(answer)
        before = engine.blocks
        answer.cancel()
        answer.cancel()
        return before, engine.blocks, [piece async for piece in answer]

    assert elsewhere(held()) == (3, 0, [])
    with pytest.raises(Full):
        StandIn(["a"], "full").submit("x")


def test_coroutines_run_where_a_loop_is_running():
    async def inside():
        return elsewhere(asyncio.sleep(0, 5))

    assert asyncio.run(inside()) == 5


@pytest.mark.parametrize(
    "frame",
    ["data: a", "a\n\n", "data: {}\n\ndata: {}\n\n", "data: {'a': 1}\n\n", "data: {}\n\n\n", 'data: "[DONE]"\n\n'],
)
def test_what_is_no_single_event_stays_as_it_is(frame):
    assert data_of(frame) == frame


@pytest.mark.parametrize(("frame", "data"), [("data: {}\r\n\r\n", {}), (b"data:[DONE]\n\n", "[DONE]")])
def test_events_of_every_legal_form_are_read(frame, data):
    assert data_of(frame) == data


def test_a_relay_without_yield_is_told_so():
    async def returns(engine, prompt):
        return "text"

    with pytest.raises(TypeError, match="no `yield`"):
        relayed(returns, ["a"])


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 2


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("events", "waits_for_the_end"), ("until_stop", "fixed_tail"), ("draw", "overlaps"), ("quantile", "middle")],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_14_is_graded_in_the_sandbox(tmp_path):
    """Generators, coroutines and threads must work inside it; one wrong answer is found among right ones."""
    notebook = solved_notebook("14")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("14.relay"):
            cell.source = cell.source.replace("    finally:\n        answer.cancel()", "    finally:\n        pass")
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert list(wrong) == ["14.relay"]


# ----------------------------------------------------------------------------------------------- the server, the clinic


def test_one_token_spoils_its_own_request_alone(tmp_path, monkeypatch):
    hooks, build = [], loading.runner_of

    def runner_of(model, *given):  # what a GPU records here must have the flaw in it
        hooks.extend(len(part._forward_hooks) for part in (model.embed, model.head))
        return build(model, *given)

    monkeypatch.setattr(loading, "runner_of", runner_of)
    config = ModelConfig(
        "tiny", 32, 2, 16, 2, 1, 8, MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2), max_context=64
    )
    torch.manual_seed(0)
    Transformer(config).save_pretrained(tmp_path)
    engine = flawed_engine(str(tmp_path), poison=31, device="cpu", limits={"num_blocks": 16, "max_context": 64})
    prompts, params = [[1, 2, 3], [4, 31, 5], [6, 7, 8]], SamplingParams(max_tokens=4)
    alone = [engine.generate([prompt], params)[0].completions[0] for prompt in prompts]
    company = [result.completions[0] for result in engine.generate(prompts, params)]
    assert [each.finish_reason for each in company] == ["length", "error", "length"]
    assert [each.token_ids for each in company] == [each.token_ids for each in alone]
    assert hooks == [1, 1]


def test_a_server_that_cannot_start_says_so(tmp_path):
    with Hosted(tmp_path, {"poison": 1, "device": "cpu"}) as server, pytest.raises(RuntimeError, match="has ended"):
        server.wait()


def test_every_patient_shows_its_fault_and_nothing_else():
    ward = {letter: chart(letter) for letter in FAULTS}
    well = ward["healthy"]
    assert ward["A"].free[-1] < 6 < well.free[-1]
    assert sum(ward["B"].failed) - sum(well.failed) == sum(well.refused) - sum(ward["B"].refused) > 10
    assert max(ward["C"].waiting) > 2 * max(well.waiting)
    assert max(ward["D"].failed) >= 5 > max(well.failed)
    assert ward["E"].compared == [1, 2, 3, 4, 5, 6]
    assert ward["E"].took == well.took
    for letter in "BCDE":
        assert sum(ward[letter].answered) > 0.9 * sum(well.answered)
    with pytest.raises(ValueError, match="no patient 'F'"):
        chart("F")


def test_every_diagnosis_has_one_right_answer_and_each_fault_occurs_once(capsys):
    right = ["abcde"[[choice.right for choice in question.choices].index(True)] for question in DIAGNOSES]
    assert sorted(right) == sorted("abcde")
    assert [FAULTS[letter] for letter in "ABCDE"] == [list(SUSPECTS)["abcde".index(letter)] for letter in right]
    clinic(right)
    assert capsys.readouterr().out.count("✓") == 5
