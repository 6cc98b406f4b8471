"""The model that comes with the course, made again by one command: `labkit train`.

Corpus, tokenizer, token files, training, baselines and card. Token files and checkpoints stay in a work folder, so a
run that was stopped goes on where it was. Nothing is chosen by looking at the held-out text.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core import runtime
from labkit.core.config import ModelConfig, MoEConfig

if TYPE_CHECKING:
    from labkit.course.card import Measured
    from labkit.train.settings import TrainConfig

Say = Callable[[str], None]

PACKAGES = ("torch", "transformers", "sympy", "numpy", "networkx", "huggingface_hub")
MIXTURE = {"code": 0.5, "english": 0.1, "arithmetic": 0.2, "records": 0.2}
PROMPTS = {
    "code": "def read_lines(path):\n    ",
    "english": "Return a new list ",
    "arithmetic": "37 + 45 = ",
    "records": "id,city,amount,state,date\n10012,Oslo,",
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes.

    Args:
        config: the model; the tokenizer is trained to its vocabulary.
        train_bytes, validation_bytes: the most of each domain; packages: read beside the standard library.
        training: values of `train.TrainConfig`.
        mixture: the share of the tokens that each domain gives.
    """

    config: ModelConfig
    train_bytes: dict[str, int]
    validation_bytes: int
    packages: tuple[str, ...]
    training: dict[str, Any]
    mixture: dict[str, float] = field(default_factory=lambda: dict(MIXTURE))

    @property
    def settings(self) -> TrainConfig:
        """The loop's configuration. Raises ValueError for a setting that does not exist or does not fit."""
        from labkit.train.settings import TrainConfig

        return TrainConfig.from_dict(self.training)


def _model(name: str, vocab_size: int, layers: int, d_model: int, d_expert: int, experts: int) -> ModelConfig:
    return ModelConfig(
        name=name, vocab_size=vocab_size, num_layers=layers, d_model=d_model, num_heads=d_model // 32,
        num_kv_heads=2, head_dim=32, qk_norm="head", tie_embeddings=True, max_context=1024,
        moe=MoEConfig(d_model=d_model, d_expert=d_expert, num_experts=experts, top_k=2),
    )  # fmt: skip


RECIPES = {
    "gpu": Recipe(
        config=_model("four-domains", 4096, layers=6, d_model=256, d_expert=128, experts=16),
        train_bytes={"code": 80_000_000, "english": 40_000_000, "arithmetic": 20_000_000, "records": 20_000_000},
        validation_bytes=400_000,
        packages=PACKAGES,
        training={
            "steps": 6000, "batch": 64, "sequence": 1024, "learning_rate": 1e-2, "optimizer": "muon",
            "schedule": "wsd", "warmup": 200, "decay": 1800, "final": 0.02, "balance_loss": 0.01, "z_loss": 0.001,
            "log_every": 50, "validate_every": 500, "save_every": 2000, "keep": 1,
        },
    ),
    "cpu": Recipe(
        config=_model("four-domains-tiny", 512, layers=2, d_model=64, d_expert=32, experts=8),
        train_bytes=dict.fromkeys(MIXTURE, 60_000),
        validation_bytes=20_000,
        packages=(),
        training={
            "steps": 40, "batch": 4, "sequence": 64, "learning_rate": 4e-3, "schedule": "wsd", "warmup": 5,
            "decay": 10, "balance_loss": 0.01, "log_every": 10, "validate_every": 20, "precision": "float32",
            "device": "cpu",
        },
    ),
}  # fmt: skip
"""The recipe by profile: "gpu" makes the shipped model, "cpu" goes the same way in seconds."""


def make(folder: Path, profile: str = "auto", *, say: Say = print, **changes: Any) -> Path:
    """Train the course's model and write it, with its card, as a Hugging Face folder.

    Args:
        folder: where to; work in progress lies beside it, in FOLDER.work, and is removed at the end.
        profile: which recipe: "gpu", "cpu", or "auto", the first where there is a GPU.
        say: told what happens.
        changes: of the training settings, such as steps=100.

    Raises ValueError for a profile or a setting that does not exist, `runtime.Unavailable` for "gpu" without one,
    FileExistsError if the folder is there and not empty, and `Interrupted` after Ctrl-C, when what is done is saved.
    """
    profile = runtime.resolve_profile(profile)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a model already; move it away or give another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there and no empty folder; give another name")
    recipe = replace(RECIPES[profile], training={**RECIPES[profile].training, **changes})
    recipe.settings  # noqa: B018 (a wrong setting should speak before the corpus is read)
    work = folder.with_name(f"{folder.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    fresh = _make(recipe, work, say)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rmdir()
    fresh.rename(folder)
    shutil.rmtree(work)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    say(f"wrote {folder} ({size:.1f} MB) in {time.monotonic() - started:.0f} s")
    return folder


def _make(recipe: Recipe, work: Path, say: Say) -> Path:
    """The finished folder, still among the work."""
    import torch

    from labkit.course.card import write_card
    from labkit.course.run import Interrupted
    from labkit.nn import Transformer
    from labkit.train.loop import train
    from labkit.train.tokens import TokenSource, evaluation

    settings = recipe.settings
    corpus, tokenizer, files = _texts(recipe, work, say)
    runtime.seed_all(settings.seed)
    model = Transformer(recipe.config)
    model.reset_parameters(torch.Generator().manual_seed(settings.seed))
    source = TokenSource(files["train"], recipe.mixture, seed=settings.seed)
    held = evaluation(files["validation"], settings.sequence, batch=32)
    say(f"training: {settings.steps:,} steps of {settings.tokens_per_step:,} tokens")
    say(f"the log is {work / 'run' / 'log.jsonl'}")
    started = time.monotonic()
    result = train(model, source, settings, validation=held, folder=work / "run", resume="latest-good")
    if result.stopped != "finished":
        raise Interrupted(f"stopped at step {result.step} of {settings.steps}; the same command goes on from there")
    fresh = work / "model"
    shutil.rmtree(fresh, ignore_errors=True)
    seconds, device = time.monotonic() - started, model.device
    model.to("cpu").bfloat16().save_pretrained(fresh, tokenizer=tokenizer)
    say("measuring what was saved, and the baselines")
    kept = Transformer.from_pretrained(fresh, dtype=torch.float32, device=device)
    measured = _measure(recipe, kept, tokenizer, files, held)
    epochs = source.epochs
    write_card(fresh, recipe, measured, corpus=corpus, rows=result.rows, seconds=seconds, device=device, epochs=epochs)
    return fresh


def _texts(recipe: Recipe, work: Path, say: Say) -> tuple[str, Any, dict]:
    """What was read, in words; the tokenizer; and token files by split and domain. Found again if they are there."""
    from transformers import AutoTokenizer

    from labkit.train.documents import collect
    from labkit.train.tokenizer import train_tokenizer
    from labkit.train.tokens import open_tokens, write_tokens

    told = work / "corpus.txt"
    if told.is_file():
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        return told.read_text("utf-8"), tokenizer, open_tokens(work / "tokens", tokenizer)
    say("reading the corpus")
    texts = collect(
        tuple(recipe.mixture), recipe.train_bytes, dict.fromkeys(recipe.mixture, recipe.validation_bytes),
        packages=recipe.packages, processes=4 if recipe.packages else 1,
    )  # fmt: skip
    say(texts.describe())
    say("training the tokenizer and writing tokens")
    tokenizer = train_tokenizer(texts.train, recipe.config.vocab_size, bytes_per_domain=5_000_000)
    tokenizer.save_pretrained(work / "tokenizer")
    files = write_tokens(work / "tokens", texts, tokenizer)
    told.write_text(texts.describe(), "utf-8")  # last: it says that the rest is whole
    return texts.describe(), tokenizer, files


def _measure(recipe: Recipe, model: Any, tokenizer: Any, files: dict, held: tuple) -> Measured:
    """Held-out losses of the model and of n-grams fitted to the same training tokens, domain by domain; and samples."""
    from labkit.course.card import Measured
    from labkit.train.evaluate import losses
    from labkit.train.ngram import baselines

    fitted = baselines(files["train"], files["validation"], tokenizer, recipe.settings.sequence)
    found = {"model": losses(model, held)}
    for name, order in (("unigram", 1), ("5-gram", 5)):
        found[name] = {domain: fitted[domain][order].nats_per_token for domain in recipe.mixture}
    size = {domain: fitted[domain][1].nats_per_token / fitted[domain][1].nats_per_byte for domain in recipe.mixture}
    samples = {domain: continued(model, tokenizer, prompt) for domain, prompt in PROMPTS.items()}
    return Measured(
        found, size, {d: int(files["train"][d].tokens) for d in recipe.mixture}, samples, load_of(model, held)
    )


def continued(model: Any, tokenizer: Any, prompt: str, count: int = 60) -> str:
    """A prompt and what the model makes of it, greedily."""
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], device=model.device)
    out = model.generate(ids, max_new_tokens=count, eos_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def load_of(model: Any, held: tuple) -> list[float]:
    """The largest load of each sparse layer over the even one, on one held-out batch of every domain."""
    import torch

    from labkit.core.metrics import max_violation
    from labkit.nn import trace

    first = {batch.domains[0]: batch.ids_BS[:4] for batch in reversed(held)}
    return [float(max_violation(record)) for record in trace(model, torch.cat(list(first.values())))]
