"""The card of a trained model: what it was made of, how, and what it can do, every number measured."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core import runtime
from labkit.core.cost import model_params

if TYPE_CHECKING:
    from labkit.course.recipe import Recipe
    from labkit.show.picture import Picture


@dataclass(frozen=True)
class Measured:
    """What was measured on the saved model.

    Args:
        nats: held-out loss in nats per token, by who predicts ("model", "unigram", "5-gram") and domain.
        bytes_per_token: by domain, of the held-out tokens that are predicted.
        train_tokens: how many different ones there are, by domain.
        samples: a prompt and its continuation, by domain.
        violation: of each sparse layer, the largest load over the even one, less one.
    """

    nats: dict[str, dict[str, float]]
    bytes_per_token: dict[str, float]
    train_tokens: dict[str, int]
    samples: dict[str, str]
    violation: list[float]


def write_card(
    folder: Path, recipe: Recipe, measured: Measured, *, corpus: str, rows: tuple[dict[str, Any], ...],
    seconds: float, device: Any, epochs: dict[str, float],
) -> None:  # fmt: skip
    """Write README.md, curve.png and notes.json (the log and the measurements) into the model's folder."""
    from labkit.show.picture import png

    place = runtime.device_name(device)
    figure = curve(rows)
    (folder / "curve.png").write_bytes(png(figure))
    notes = {
        "training": recipe.training, "mixture": recipe.mixture, "seconds": round(seconds, 1), "device": place,
        "nats_per_token": measured.nats, "bytes_per_token": measured.bytes_per_token, "log": [_thin(r) for r in rows],
    }  # fmt: skip
    (folder / "notes.json").write_text(json.dumps(notes, indent=1) + "\n", "utf-8")
    parts = [
        _about(recipe, rows, seconds, place),
        _losses(recipe, measured),
        f"![{figure.alt}](curve.png)",
        _samples(measured),
        _text(recipe, measured, corpus, epochs),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def curve(rows: tuple[dict[str, Any], ...]) -> Picture:
    """Training loss by step, and the held-out loss of every domain."""
    from labkit.show import picture, style

    with style.use():
        figure, (axes,) = picture.new(size=(7.2, 3.6))
        tokens = [row["tokens"] / 1e6 for row in rows]
        axes.plot(tokens, [row["loss"] for row in rows], color=style.GREY, lw=1, label="training, all domains")
        checked = [row for row in rows if row.get("validation")]
        for colour, domain in zip(style.PALETTE, checked[-1]["validation"] if checked else (), strict=False):
            values = [row["validation"][domain] for row in checked]
            axes.plot(
                [r["tokens"] / 1e6 for r in checked], values, "o-", ms=3, color=colour, label=f"held out, {domain}"
            )
        axes.set(xlabel="tokens seen, millions", ylabel="loss, nats a token", ylim=(0, None))
        axes.legend()
    last = ", ".join(f"{d} {value:.2f}" for d, value in (checked[-1]["validation"] if checked else {}).items())
    figure.alt = (
        f"Training loss from {rows[0]['loss']:.2f} to {rows[-1]['loss']:.2f} nats a token; held out at the end: {last}."
    )
    return figure


def _about(recipe: Recipe, rows: tuple[dict[str, Any], ...], seconds: float, place: str) -> str:
    c, settings, params = recipe.config, recipe.settings, model_params(recipe.config)
    tokens = settings.steps * settings.tokens_per_step
    return (
        f"# {c.name}\n\n"
        f"A small mixture-of-experts language model for the course's labs, in the layout of Qwen3-MoE: {c.num_layers} "
        f"layers of width {c.d_model}, {c.moe.num_experts} experts of width {c.moe.d_expert} in each, {c.moe.top_k} "
        f"for every token; {params.total / 1e6:.2f} M parameters, {params.active / 1e6:.2f} M of them active; "
        f"vocabulary {c.vocab_size:,}, context {c.max_context:,} (trained at {settings.sequence:,}); stored in "
        "bfloat16.\n\n"
        f"Made by `labkit train FOLDER`: {settings.steps:,} steps of {settings.tokens_per_step:,} tokens, "
        f"{tokens:,} in all, in {seconds:.0f} s on {place} ({rows[-1]['tokens_per_s'] / 1e3:.0f} k tokens/s "
        f"at the end), with torch {version('torch')}. It knows four kinds of text and nothing of the world: use it to "
        "look at routing, not for answers."
    )


def _losses(recipe: Recipe, measured: Measured) -> str:
    lines = [
        "## What it has learned\n",
        "Loss on held-out text, in nats a token; in brackets bits a byte. The n-grams were fitted to each domain's own",
        "training tokens, the same that the model saw (5-gram: interpolated Kneser–Ney).\n",
        "| domain | unigram | 5-gram | this model |",
        "|---|---|---|---|",
    ]
    for domain in recipe.mixture:
        cells = [measured.nats[who][domain] for who in ("unigram", "5-gram", "model")]
        bits = [nats / math.log(2) / measured.bytes_per_token[domain] for nats in cells]
        row = " | ".join(f"{nats:.3f} ({bit:.2f})" for nats, bit in zip(cells, bits, strict=True))
        lines.append(f"| {domain} | {row} |")
    loads = ", ".join(f"{value:.2f}" for value in measured.violation)
    lines.append(f"\nLargest expert's load above the even one, layer by layer: {loads}.")
    return "\n".join(lines)


def _samples(measured: Measured) -> str:
    shown = "\n\n".join(f"{domain}:\n\n```\n{text}\n```" for domain, text in measured.samples.items())
    return f"## What it writes\n\nA prompt and its greedy continuation, unedited.\n\n{shown}"


def _text(recipe: Recipe, measured: Measured, corpus: str, epochs: dict[str, float]) -> str:
    lines = ["| domain | share of the tokens | different tokens | epochs | bytes a token |", "|---|---|---|---|---|"]
    for domain, share in recipe.mixture.items():
        lines.append(
            f"| {domain} | {share:.0%} | {measured.train_tokens[domain]:,} | {epochs[domain]:.1f} | "
            f"{measured.bytes_per_token[domain]:.2f} |"
        )
    table = "\n".join(lines)
    return (
        "## What it was made of\n\n"
        "Text of the machine that trained it; none of it is stored here. Whole modules and topics are held out by "
        f"name, the same on every machine.\n\n{table}\n\n```\n{corpus}\n```"
    )


def _thin(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("step", "tokens", "loss", "learning_rate", "validation")
    return {key: round(row[key], 4) if key == "loss" else row[key] for key in kept if row.get(key) is not None}
