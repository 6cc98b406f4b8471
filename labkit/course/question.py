"""A question of a recap: its choices, one of them right, and what is said to a learner who picks each."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.show.cards import Card

LETTERS = "abcdef"


@dataclass(frozen=True)
class Choice:
    """One possible answer and what is said to a learner who picks it."""

    text: str
    says: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question of a recap, with two to six choices of which exactly one is right."""

    text: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise ValueError(f"question {self.text!r} has {len(self.choices)} choices; give two to six")
        if sum(choice.right for choice in self.choices) != 1:
            raise ValueError(f"question {self.text!r} needs exactly one right choice")

    def answer(self, letter: str) -> Choice:
        """The choice of a letter; ValueError for a letter that the question does not have."""
        letters = LETTERS[: len(self.choices)]
        if not (isinstance(letter, str) and len(letter) == 1 and letter.lower() in letters):
            raise ValueError(f"{letter!r} is no answer to {self.text!r}; give one of {', '.join(letters)}")
        return self.choices[letters.index(letter.lower())]

    def card(self, number: int, letter: str | None) -> Card:
        """The question with its choices or, once answered, what there is to say."""
        title = f"Question {number}: {self.text}"
        if letter is None:
            return Card("todo", title, tuple(f"{LETTERS[i]}) {choice.text}" for i, choice in enumerate(self.choices)))
        choice = self.answer(letter)
        return Card("pass" if choice.right else "fail", title, (f"{letter.lower()}) {choice.text}", choice.says))
