"""A distillation run: the training loop with a teacher, and beside it the same student alone for the same FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit.core import runtime
from labkit.core.config import ModelConfig
from labkit.train.distill.budget import Budget
from labkit.train.distill.cache import CachedTeacher
from labkit.train.distill.objective import Distillation, DistillConfig
from labkit.train.distill.on_policy import OnPolicy
from labkit.train.feed import Source
from labkit.train.loop import Step, TrainResult, train
from labkit.train.settings import TrainConfig


@dataclass(frozen=True, eq=False)
class Distilled:
    """How a distillation ended.

    Args:
        student: the run with the teacher; baseline: the run without, None if the first was interrupted.
        alone: the baseline's model.
        budget: what the first cost; the baseline was given `budget.equal_steps` steps.
    """

    student: TrainResult
    baseline: TrainResult | None
    alone: nn.Module
    budget: Budget


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    source: Source,
    config: TrainConfig,
    settings: DistillConfig | None = None,
    *,
    baseline_source: Source | None = None,
    validation: Any = None,
    folder: Path | str | None = None,
    resume: Any = True,
    on_step: Callable[[Step], None] | None = None,
) -> Distilled:
    """Train a student with a teacher, then a copy of it without one for as many FLOPs, the teacher's reading counted.

    Args:
        student: a model with a `ModelConfig`, trained in place. The baseline starts from the same weights.
        teacher: a model with a `ModelConfig`, moved to the device; None where the source is a `CachedTeacher`.
        source: batches; `OnPolicy(student, …)` for the student's own text.
        config: of the student's run. The baseline's differs in its steps; warm-up and decay keep their share of them.
        settings: the losses, by default forward KL alone.
        baseline_source: None: the same text from the same place (of `OnPolicy`, the text behind it). A cache's text is
            then read again and again; give fresh text where there is some.
        validation, folder, resume, on_step: as for `loop.train`; the runs are in `student` and `baseline` of the
            folder. `on_step` hears the student's run alone.

    Raises ValueError for models whose FLOPs nobody can count, vocabularies that differ, and as `loop.train` does.
    """
    settings = settings or DistillConfig()
    spent = _budget(student, teacher, source, config, settings)
    alone, text = copy.deepcopy(student), baseline_source or getattr(source, "text", source)
    start = text.state()
    if teacher is not None:
        teacher.to(runtime.device() if config.device == "auto" else torch.device(config.device))
    objective = Distillation(settings, teacher)
    options = {"validation": validation, "resume": resume}
    with_teacher = train(
        student, source, config, folder=_inside(folder, "student"), on_step=on_step, objective=objective, **options
    )
    if with_teacher.stopped != "finished":
        return Distilled(with_teacher, None, alone, spent)
    text.load(start)
    without = train(alone, text, longer(config, spent.equal_steps), folder=_inside(folder, "baseline"), **options)
    return Distilled(with_teacher, without, alone, spent)


def longer(config: TrainConfig, steps: int) -> TrainConfig:
    """The same training over other steps: warm-up and decay keep their share.

    >>> config = TrainConfig(steps=10, batch=1, sequence=8, learning_rate=1e-3, warmup=2)
    >>> longer(config, 35).warmup
    7
    """
    scale = steps / config.steps
    return config.replace(steps=steps, warmup=int(config.warmup * scale), decay=int(config.decay * scale))


def _budget(
    student: nn.Module, teacher: nn.Module | None, source: Source, config: TrainConfig, settings: DistillConfig
) -> Budget:
    ours, theirs = getattr(student, "config", None), getattr(teacher, "config", None)
    own = {}
    if isinstance(source, OnPolicy):
        if source.student is not student:
            raise ValueError("the source writes with another model than the student; give OnPolicy the student itself")
        if settings.hard:
            raise ValueError(f"hard is {settings.hard}, but a student's own text is no truth to learn; set it to 0")
        own = {"prompt": source.prompt, "share": source.share}
    if (teacher is None) != isinstance(source, CachedTeacher):
        raise ValueError("give either a teacher, or None and a CachedTeacher as the source")
    reading = theirs if teacher is not None else source.cache.flops
    if not isinstance(ours, ModelConfig) or not isinstance(reading, (ModelConfig, float, int)):
        raise ValueError("equal FLOPs need models with a ModelConfig; load them with Transformer.from_pretrained")
    known = theirs.vocab_size if teacher is not None else source.cache.vocab_size
    if ours.vocab_size != known:
        raise ValueError(f"the student's vocabulary has {ours.vocab_size} tokens, the teacher's {known}; share one")
    return Budget.of(ours, reading, config, **own)


def _inside(folder: Path | str | None, name: str) -> Path | None:
    return None if folder is None else Path(folder) / name
