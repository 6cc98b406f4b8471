"""A master becomes its notebooks: the same each time, with nothing of the answers left in the student's."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import types
from importlib import util

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbgrader.nbgraderformat import MetadataValidator

from labkit.course import address, labs
from labkit.course.master import MasterError, read_master
from labkit.course.release import (
    GENERATED,
    answer_id,
    check_id,
    grade_id,
    notebook_path,
    release,
    render,
    solved_notebook,
    stale,
    student_notebook,
)
from labkit.course.shape import lint

STUB = ["# YOUR CODE HERE", "raise NotImplementedError()"]


@pytest.fixture(params=labs.notebooks())
def number(request):
    return request.param


def grader(notebook, name):
    return next(cell for cell in notebook.cells if grade_id(cell) == name)


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(line in rest for line in part)


def test_notebooks_on_disk_are_what_the_masters_make(number):
    assert not stale(number), f"run `labkit release`: notebooks/ is behind solutions/ for lab {number}"


@pytest.mark.parametrize("number", labs.numbers())
def test_every_lab_keeps_its_shape(number):
    assert lint(number) == []


def test_solving_only_adds_lines(number):
    solved, student = solved_notebook(number), student_notebook(number)
    assert [cell.id for cell in solved.cells] == [cell.id for cell in student.cells]
    changed = 0
    for full, blank in zip(solved.cells, student.cells, strict=True):
        kept = [line for line in blank.source.splitlines() if line.strip() not in STUB]
        assert is_subsequence(kept, full.source.splitlines())
        changed += full.source != blank.source
    assert changed == len(labs.lab(number).exercises)


def test_student_notebook_holds_no_answer(number):
    student = student_notebook(number)
    text = render(student)
    assert "BEGIN SOLUTION" not in text
    assert "END SOLUTION" not in text
    assert not any(cell.get("outputs") for cell in student.cells)
    for exercise in labs.lab(number).exercises:
        assert grader(student, answer_id(exercise.id)).source.endswith("raise NotImplementedError()")


def test_metadata_is_valid_for_nbgrader(number):
    student = student_notebook(number)
    MetadataValidator().validate_nb(student)
    nbformat.validate(student)
    assert student.metadata.kernelspec.name == "python3"
    for exercise in labs.lab(number).exercises:
        check = grader(student, check_id(exercise.id))
        assert check.metadata.nbgrader.points == exercise.points
        assert check.metadata.nbgrader.checksum
        assert check.metadata.editable is False


def test_made_twice_is_the_same(tiny):
    paths = release(98, tiny.root)
    first = paths[0].read_bytes()
    assert paths == (notebook_path(read_master(tiny.master)),)
    assert release(tiny.master)[0].read_bytes() == first


def test_stale_when_missing_or_changed(tiny):
    assert stale("98", tiny.root)
    release("98", tiny.root)
    assert not stale("98", tiny.root)
    tiny.master.write_text(tiny.master.read_text("utf-8").replace("A lab for tests", "A lab"), "utf-8")
    assert stale("98", tiny.root)


def test_work_in_a_student_notebook_is_kept(tiny):
    (path,) = release("98", tiny.root)
    assert release("98", tiny.root) == (path,)
    for count in (1, 2):
        notebook = nbformat.read(path, as_version=4)
        mine = next(cell for cell in notebook.cells if cell.metadata.get("exercise"))
        mine.source = f"def times_2(x):\n    return {count} * x"
        nbformat.write(notebook, path)
        written, kept = release("98", tiny.root)
        assert written == path
        assert mine.source in [cell.source for cell in nbformat.read(kept, as_version=4).cells]
    assert not stale("98", tiny.root)
    assert len(list(path.parent.iterdir())) == 3


def test_ids_stay_when_a_cell_is_added(tiny):
    before = [cell.id for cell in solved_notebook("98", tiny.root).cells]
    text = tiny.master.read_text("utf-8")
    tiny.master.write_text(text.replace('# %% tags=["setup"]', '# %% [markdown]\n# New.\n\n# %% tags=["setup"]'))
    after = [cell.id for cell in solved_notebook("98", tiny.root).cells]
    assert len(after) == len(set(after)) == len(before) + 1
    assert [name for name in after if name in before] == before


def test_cards_stand_before_their_exercises(tiny):
    cells = student_notebook("98", tiny.root).cells
    for card, exercise in itertools.pairwise(cells):
        if exercise.metadata.get("exercise"):
            assert card.metadata.tags == ["labkit-card"]
            assert exercise.metadata.exercise in card.source
    card = next(cell.source for cell in cells if cell.metadata.get("card") == "98.times_4")
    for part in ("●○○", "5 minutes", "4 points", 'hint("98.times_4")', 'reveal("98.times_4")', "Multiply by 4"):
        assert part in card


def test_facts_stand_under_the_title(tiny):
    title, facts, colab, parameters = student_notebook("98", tiny.root).cells[:4]
    assert title.source.startswith("# 98 · Tiny")
    for part in ("20 minutes", "any CPU", "255 points", "90%", "someone/somewhere/blob/main/data/claims.yaml"):
        assert part in facts.source
    assert "colab.research.google.com/github/someone/somewhere/blob/main/notebooks/98_tiny.ipynb" in facts.source
    assert "git+https://github.com/someone/somewhere" in colab.source
    assert parameters.metadata.tags == ["parameters"]
    assert [cell.metadata.tags[0] for cell in (facts, colab)] == ["labkit-facts", "labkit-colab"]
    assert set(GENERATED) >= {"labkit-facts", "labkit-colab"}


def test_a_notebook_that_is_no_lab_has_nothing_to_grade():
    assert set(labs.notebooks()) - set(labs.numbers()) == set(labs.extras()) >= {"gallery"}
    student = student_notebook("gallery")
    title, facts, colab, parameters = student.cells[:4]
    assert title.source.startswith("# ")
    assert facts.source.startswith("| Notebook | |")
    assert "Exercises" not in facts.source
    assert [cell.metadata.tags for cell in (colab, parameters)] == [["labkit-colab"], ["parameters"]]
    assert not any("nbgrader" in cell.metadata for cell in student.cells)
    assert notebook_path(read_master("gallery")).name == "gallery.ipynb"
    assert labs.lab("gallery").stem == "gallery"


def test_only_a_lab_has_exercises_and_only_a_lab_needs_a_recap(tiny):
    extra = dataclasses.replace(tiny.lab, number="tour", name="", exercises=(), questions=())
    assert extra.is_extra
    assert not tiny.lab.is_extra
    with pytest.raises(ValueError, match="notebook tour is no lab"):
        dataclasses.replace(extra, questions=tiny.lab.questions)
    with pytest.raises(ValueError, match="0 recap questions"):
        dataclasses.replace(tiny.lab, questions=())


def run_colab_cell(source):
    ran = []
    shell = types.SimpleNamespace(run_line_magic=lambda name, line: ran.append((name, line)))
    exec(TransformerManager().transform_cell(source), {"get_ipython": lambda: shell})
    return ran


def test_colab_cell_does_nothing_elsewhere(monkeypatch, capsys):
    source = address.colab_source("https://github.com/a/b")
    assert run_colab_cell(source) == []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert run_colab_cell(source) == []  # labkit is there already
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    ((magic, line),) = run_colab_cell(source)
    assert magic == "pip"
    assert line.endswith('--upgrade-strategy only-if-needed "labkit @ git+https://github.com/a/b"')
    assert "--upgrade " not in line
    assert capsys.readouterr().out == ""


def test_address_comes_from_one_place(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(ValueError, match="names no address"):
        address.repository(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project.urls]\nRepository = 'https://forge.example/a/b.git'\n")
    assert address.repository(tmp_path) == "https://forge.example/a/b"
    assert address.colab_badge(address.repository(tmp_path), "98_tiny") == ""
    monkeypatch.setattr(address, "checkout", lambda: None)
    monkeypatch.setattr(
        address.metadata,
        "metadata",
        lambda name: types.SimpleNamespace(get_all=lambda key: ["Repository, https://x/y"]),
    )
    assert address.repository() == "https://x/y"


BREAKS = {
    "two functions": ("    return 2 * x\n    ### END SOLUTION", "    return 2 * x\n    ### END SOLUTION\n\ny = 1",
                      r"98_tiny.py:\d+, cell 5: an exercise is one function"),
    "no parameters": ('tags=["parameters"]', 'tags=["setup"]', "0 cells are tagged parameters"),
    "two parameters": ('tags=["setup"]', 'tags=["parameters"]', r":10, cell 3: 2 cells are tagged parameters"),
    "unknown exercise": ('exercise="98.times_2"', 'exercise="98.times_22"', r"cell 5: .*did you mean '98.times_2'"),
    "check alone": ('exercise="98.times_2"', "", r"cell 5: a solution region in a cell without exercise="),
    "unknown check": ('check="98.times_2"', 'check="98.nothing"', "has no exercise '98.nothing'"),
    "no check": ('check="98.times_2"', "", "exercise 98.times_2 has no check"),
    "check before": ('check="98.times_2"', 'check="98.times_3"', "it checks 98.times_3, and no cell before it"),
    "other check": ('times_2 = check("98.times_2", times_2)', "pass", "a check cell holds one line: times_2 = check"),
    "other name": ("def times_2", "def times_two", "defines times_two, where exercise 98.times_2 asks for times_2"),
    "no docstring": ('"""Multiply by 2, [T] to [T]."""', "pass", "times_2 has no docstring"),
    "no region": ("    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION", "    return 2 * x",
                  "put what the learner writes between"),
    "no python": ("def times_2(x):", "def times_2(x:", "cell 5: not Python"),
    "no title": ("# # 98 · Tiny", "# 98", "the first cell must be markdown and begin with the title"),
    "text outside": ("# %% [markdown]\n# # 98", "import os\n\n# %% [markdown]\n# # 98", "text outside its cells"),
    "markdown exercise": ("# %% [markdown]\n# Now times_2.", '# %% [markdown] exercise="98.times_2"\n# x',
                          "belong to code cells"),
    "twice": ('exercise="98.times_3"', 'exercise="98.times_2"', "exercise 98.times_2 stands in two cells"),
    "another lab": ('exercise="98.times_2"', 'exercise="01.top_k"', "exercise 01.top_k belongs to another lab"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_master_says_where(tiny, case):
    old, new, says = BREAKS[case]
    text = tiny.master.read_text("utf-8")
    assert old in text
    tiny.master.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(MasterError, match=says):
        solved_notebook(tiny.master)


def test_unknown_labs_and_files(tiny, tmp_path):
    with pytest.raises(ValueError, match="there is no lab '77'"):
        student_notebook("77")
    with pytest.raises(FileNotFoundError, match="there is no master"):
        read_master(tmp_path / "98_nothing.py")
    (tmp_path / "77_x.py").write_text(tiny.master.read_text("utf-8"))
    with pytest.raises(MasterError, match="there is no lab '77_x'"):
        read_master(tmp_path / "77_x.py")


GOOD = "\n".join(
    f'# %% [markdown]\n# One.\n\n# %% [markdown]\n# Two.\n\n# %% tags=["nbval-check-output"]\nfigures.load({i})\n'
    for i in range(9)
)
ASKED = '# %%\np = predict("98.a", "How much?", 0, 1)\n\n# %%\np.against(0.5)\n\n# %%\nrecap("98")\n'


def shaped(tiny, extra):
    """What lint says of a lab of three exercises with a figure before each, followed by `extra`."""
    exercises = "\n# %% [markdown]\n# Now "
    head, *parts = tiny.master.read_text("utf-8").split(exercises)[:4]
    figure = "\n# %% [markdown]\n# See.\n\n# %%\nfigures.load(0)\n"
    tiny.lab = dataclasses.replace(tiny.lab, exercises=tiny.lab.exercises[:3])
    tiny.master.write_text(head + "".join(figure + exercises + part for part in parts) + "\n" + extra, "utf-8")
    return " | ".join(lint(tiny.master))


SPACED = ASKED.replace("\n# %%\n", "\n# %% [markdown]\n# Three.\n\n# %%\n")


def test_a_lab_in_good_shape_passes(tiny):
    assert shaped(tiny, GOOD + "\n" + SPACED) == ""


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (
            GOOD + "\n# %%\n1\n\n# %%\n2\n\n# %%\n3\n\n# %% [markdown]\n# M\n\n" + SPACED,
            "more than 2 code cells in a row",
        ),
        (GOOD.replace("figures.load", "len") + "\n" + SPACED, "code cells without a figure"),
        (GOOD.replace("nbval-check-output", "x") + "\n" + SPACED, "0 cells are tagged nbval"),
        (GOOD, "no prediction"),
        (GOOD, "no recap"),
        (GOOD + "\n" + SPACED.replace("p.against(0.5)", "1"), "1 predictions are asked for and 0 are shown"),
        (
            GOOD + "\n" + SPACED.replace("p = predict", "q.against(1); p = predict"),
            "a measurement without a prediction",
        ),
        (GOOD + "\n" + SPACED + "\n# %% [markdown]\n# M\n" * 20, "cells are prose; 55% to 65%"),
        (
            GOOD.replace("figures.load(", "\n".join(["x = 1"] * 21) + "\nfigures.load(") + "\n" + SPACED,
            "longer than 20",
        ),
    ],
)
def test_lint_names_what_is_out_of_shape(tiny, extra, says):
    assert says in shaped(tiny, extra)


def test_lint_counts_exercises_and_imports(tiny):
    tiny.master.write_text(tiny.master.read_text("utf-8").replace("import check, hint, reveal", "import check"))
    found = " | ".join(lint(tiny.master))
    assert "8 exercises; 3 to 6" in found
    assert "no setup cell imports hint, reveal" in found
    tiny.master.write_text(tiny.master.read_text("utf-8").split("\n# %% [markdown]\n# Now chain")[0])
    assert "declares 98.chain" in " | ".join(lint(tiny.master))
