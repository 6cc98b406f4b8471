"""A prediction before every experiment: the learner commits to a number, then sees it beside the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from labkit.course import progress
from labkit.course.say import say, with_static
from labkit.show.cards import Card


@dataclass(frozen=True)
class Prediction:
    """A question about a number that nobody here knows yet. Made by `predict`."""

    id: str
    question: str
    low: float
    high: float
    unit: str = ""

    @property
    def guess(self) -> float | None:
        """What the learner has predicted, or None."""
        return progress.read()["predictions"].get(self.id, {}).get("guess")

    def make(self, guess: float) -> None:
        """Keep a guess. Once the measurement has been seen nothing changes any more, and a ValueError says so."""
        if not (isinstance(guess, (int, float)) and math.isfinite(guess) and self.low <= guess <= self.high):
            raise ValueError(f"{guess!r} is no prediction here; give a number from {self.low:g} to {self.high:g}")
        entry = progress.read()["predictions"].get(self.id, {})
        if "measured" in entry and entry.get("guess") != guess:
            kept = (
                "this one goes without"
                if self.guess is None
                else f"yours stays {plain(self.guess)} {self.unit}".strip()
            )
            raise ValueError(f"{self.id} has been measured, so {kept}; start_over() forgets both")
        progress.update("predictions", self.id, guess=float(guess))

    def start_over(self) -> None:
        """Forget the prediction and that its answer was seen."""
        progress.forget("predictions", self.id)

    def against(
        self, measured: float, low: float | None = None, high: float | None = None, calculated: bool = False
    ) -> None:
        """Show the prediction beside the measurement, and the interval from `low` to `high` if there is one.

        `calculated` says that the number follows from a formula, without a measurement.
        """
        if not math.isfinite(measured):
            raise ValueError(f"{self.id} was measured as {measured}; a measurement is a finite number")
        guess = self.guess
        progress.update("predictions", self.id, measured=float(measured))
        interval = "" if low is None or high is None else f" (from {plain(low)} to {plain(high)})"
        how = "Calculated" if calculated else "Measured"
        lines = [f"{how}: {plain(measured)} {self.unit}".rstrip() + interval + "."]
        if guess is None:
            lines.append("You made no prediction. The next one is worth a guess: being wrong is how it sticks.")
        else:
            off = plain(abs(guess - measured))
            lines.append(f"You predicted {plain(guess)} {self.unit}".rstrip() + f", off by {off}.")
        say(Card("info", self.question, tuple(lines)))
        spread = None if low is None or high is None else (low, high)
        self._draw(measured, spread, how.lower())

    def _draw(self, measured: float, spread: tuple[float, float] | None, how: str) -> None:
        from IPython import get_ipython
        from IPython.display import display

        from labkit.show import figures

        if get_ipython() is not None:
            line = figures.prediction_line(self.guess, measured, self.low, self.high, self.unit, spread, how=how)
            display(line)


def plain(value: float) -> str:
    """A number with four significant digits and no exponent.

    >>> plain(4.744e-05), plain(131072.0), plain(2.5)
    ('0.00004744', '131,072', '2.5')
    """
    rounded = float(f"{value:.4g}")
    if abs(rounded) >= 1000:
        return f"{value:,.0f}"
    return np.format_float_positional(rounded, trim="-")


def predict(
    id: str,
    question: str,
    low: float,
    high: float,
    unit: str = "",
    guess: float | None = None,
    step: float | None = None,
) -> Prediction:
    """Ask for a number between `low` and `high` before it is measured; returns the Prediction.

    In a notebook a slider appears, in steps of `step`, and its button keeps the guess; `guess=` does so in code.
    Raises ValueError for an empty range or a guess outside it.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"predict({id!r}) ranges from {low} to {high}; give two finite numbers, the smaller one first")
    prediction = Prediction(id, question, float(low), float(high), unit)
    if guess is not None:
        prediction.make(guess)
    span = f"Anywhere from {plain(low)} to {plain(high)} {unit}".rstrip() + "."
    how = "Where no slider can be moved: `predict(…, guess=…)`."
    card = Card("todo", f"Predict: {question}", (span, how))
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(card)
    else:
        display(with_static(_slider(prediction, step), card), raw=True)
    return prediction


def _slider(prediction: Prediction, step: float | None) -> Any:
    import ipywidgets

    step = step or (prediction.high - prediction.low) / 100
    middle = prediction.low + step * round((prediction.high - prediction.low) / 2 / step)
    start = prediction.guess if prediction.guess is not None else middle
    slider = ipywidgets.FloatSlider(
        value=start, min=prediction.low, max=prediction.high, step=step,
        description="I predict", readout_format=".4g", layout={"width": "32em"}, continuous_update=False,
    )  # fmt: skip
    button = ipywidgets.Button(description="Commit", tooltip="Keep this prediction")
    said = ipywidgets.HTML("" if prediction.guess is None else f"Your prediction: {plain(prediction.guess)}")

    def commit(_: Any) -> None:
        try:
            prediction.make(slider.value)
            said.value = escape(f"Kept: {plain(slider.value)} {prediction.unit}")
        except ValueError as error:
            said.value = escape(str(error))

    button.on_click(commit)
    heading = ipywidgets.HTML(f"<b>Predict:</b> {escape(prediction.question)}")
    unit = ipywidgets.Label(prediction.unit)
    return ipywidgets.VBox([heading, ipywidgets.HBox([slider, unit, button]), said])
