"""The trained model that later labs work with: the learner's own from lab 07 if there is one, else the shipped one."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.runtime import data_path
from labkit.course.progress import home

if TYPE_CHECKING:
    import torch

    from labkit.nn import Transformer

SHIPPED = "checkpoints/four-domains"
WHOSE = ("auto", "yours", "shipped")
_NOTES = "notes.json"


@dataclass(frozen=True, eq=False)
class Trained:
    """A model that has learned something, with its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: of transformers.
        folder: where it was read from, a Hugging Face folder.
        whose: "yours" or "shipped".
        notes: what was kept with it: how it was trained, and its losses.
    """

    model: Transformer
    tokenizer: Any
    folder: Path
    whose: str
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        from labkit.core.cost import model_params

        params, config = model_params(self.model.config), self.model.config
        owner = {"yours": "your own model, trained in lab 07", "shipped": "the model that comes with the course"}
        return (
            f"{owner[self.whose]}: {config.num_layers} layers, {params.total / 1e6:.1f} M parameters, "
            f"{params.active / 1e6:.1f} M of them active, vocabulary {config.vocab_size:,}; from {self.folder.name}"
        )


def my_model(
    whose: str = "auto", *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Trained:
    """The trained model to work with.

    Args:
        whose: "yours", "shipped", or "auto": yours if lab 07 kept one, else the shipped one.
        dtype: float32 if left out. device: the CPU if left out.

    Raises ValueError for another word; FileNotFoundError for "yours" when there is none. With "auto", a model of yours
    that cannot be read is named in a warning and the shipped one is used.
    """
    if whose not in WHOSE:
        raise ValueError(f"whose is {whose!r}; choose one of {', '.join(WHOSE)}")
    own = home() / "model"
    if whose == "yours" and not (own / "config.json").is_file():
        raise FileNotFoundError(f"there is no model of yours in {own}; lab 07 trains one and keeps it")
    if whose == "yours" or (whose == "auto" and (own / "config.json").is_file()):
        try:
            return _load(own, "yours", dtype, device)
        except (ValueError, OSError) as error:
            if whose == "yours":
                raise
            warnings.warn(f"your model cannot be read, so the shipped one is used. {error}", stacklevel=2)
    return _load(data_path(SHIPPED), "shipped", dtype, device)


def shipped_model(**options: Any) -> Trained:
    """The model that comes with the course, whatever the learner has kept; options as for `my_model`."""
    return my_model("shipped", **options)


def keep_model(model: Transformer, tokenizer: Any, notes: dict[str, Any] | None = None) -> Path:
    """Keep a trained model for later labs, in place of the one kept before.

    Args:
        model: a `labkit.nn.Transformer` that a family of transformers can express.
        tokenizer: of transformers; its vocabulary must be the model's or smaller.
        notes: plain values that say how it was trained.

    Returns the folder, in Hugging Face format. The one kept before stays until the new one is complete.
    Raises ValueError if the tokenizer has more tokens than the model, or notes are not plain values.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {model.config.vocab_size}; they do not "
            "belong together"
        )
    try:
        words = json.dumps(notes or {}, indent=1)
    except TypeError as error:
        raise ValueError(f"notes must be numbers, texts, lists and dicts: {error}") from None
    target = home() / "model"
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix=".model-") as scratch:
        made = Path(scratch) / "new"
        model.save_pretrained(made, tokenizer=tokenizer)
        (made / _NOTES).write_text(words, encoding="utf-8")
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    return target


def forget_model() -> bool:
    """Remove the learner's model; whether there was one. The shipped one is used from then on."""
    folder = home() / "model"
    if not folder.exists():
        return False
    shutil.rmtree(folder)
    return True


def _load(folder: Path, whose: str, dtype: torch.dtype | None, device: torch.device | str | None) -> Trained:
    import torch
    from transformers import AutoTokenizer

    from labkit.nn import Transformer

    model = Transformer.from_pretrained(folder, dtype=dtype or torch.float32, device=device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = folder / _NOTES
    notes = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return Trained(model, tokenizer, folder, whose, notes)
