"""The recap of a lab: a few questions that can be failed, each wrong choice with its own answer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from labkit.course import labs, progress
from labkit.course.question import LETTERS, Question
from labkit.course.say import say, with_static


def recap(lab_number: str, answers: str | Sequence[str] | None = None) -> None:
    """Show the recap of a lab as radio buttons, or judge `answers`, one letter a question ("-" for none): "bacd".

    Raises ValueError for an unknown lab, a letter too many or too few, or a letter that is no choice.
    """
    chosen = labs.lab(lab_number)
    ask(chosen.number, chosen.questions, answers)


def ask(key: str, questions: Sequence[Question], answers: str | Sequence[str] | None = None) -> None:
    """Put questions as `recap` does, and keep the answers under `key`: a lab's number, or "03.clinic"."""
    if answers is not None:
        if len(answers) != len(questions):
            raise ValueError(f"{len(answers)} answers for {len(questions)} questions; give a letter or '-' for each")
        letters = [None if letter == "-" else letter for letter in answers]
        cards = [
            question.card(i + 1, letter) for i, (question, letter) in enumerate(zip(questions, letters, strict=True))
        ]
        for card in cards:
            say(card)
        _keep(key, questions, letters)
        return
    from IPython import get_ipython
    from IPython.display import display

    for i, question in enumerate(questions):
        if get_ipython() is None:
            print(question.card(i + 1, None))
        else:
            display(with_static(_form(key, questions, i), question.card(i + 1, None)), raw=True)


def _keep(key: str, questions: Sequence[Question], letters: Sequence[str | None]) -> None:
    given = {str(i + 1): letter for i, letter in enumerate(letters) if letter is not None}
    right = [i for i, letter in given.items() if questions[int(i) - 1].answer(letter).right]
    progress.update("recaps", key, answers=given, right=len(right), of=len(questions))


def _form(key: str, questions: Sequence[Question], index: int) -> Any:
    import ipywidgets

    question = questions[index]
    options = [(f"{LETTERS[i]}) {choice.text}", LETTERS[i]) for i, choice in enumerate(question.choices)]
    buttons = ipywidgets.RadioButtons(options=options, value=None, layout={"width": "auto"})
    heading = ipywidgets.HTML(f"<b>Question {index + 1}.</b> {escape(question.text)}")
    said = ipywidgets.HTML()

    def answered(change: dict[str, Any]) -> None:
        letter = change["new"]
        said.value = question.card(index + 1, letter).html()
        entry = progress.read()["recaps"].get(key, {})
        given = {**entry.get("answers", {}), str(index + 1): letter}
        letters = [given.get(str(i + 1)) for i in range(len(questions))]
        _keep(key, questions, letters)

    buttons.observe(answered, names="value")
    return ipywidgets.VBox([heading, buttons, said])
