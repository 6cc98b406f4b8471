"""What distilling costs, the teacher's reading included, and how long the same work would train a student alone."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.config import ModelConfig
from labkit.core.cost import model_flops_per_token
from labkit.train.settings import TrainConfig


@dataclass(frozen=True)
class Budget:
    """FLOPs of a whole run.

    Args:
        steps: of the distillation; step: FLOPs of one step of training the student, 3 times its forward pass.
        teacher: of the teacher's forward passes; writing: of the student's own text.
    """

    steps: int
    step: float
    teacher: float
    writing: float = 0.0

    @classmethod
    def of(
        cls,
        student: ModelConfig,
        teacher: ModelConfig | float,
        config: TrainConfig,
        *,
        prompt: int = 0,
        share: float = 0.0,
    ) -> Budget:
        """Count a run.

        Args:
            student: its configuration.
            teacher: its configuration, if it reads every batch; or the FLOPs of its reading for a cache, which are paid
                once however often the cache is read.
            config: how the student is trained.
            prompt, share: of `OnPolicy`. Each written token is a forward pass of the student; the prompt is one too.

        >>> from labkit.core.presets import preset
        >>> config = TrainConfig(steps=100, batch=1, sequence=8, learning_rate=1e-3)
        >>> model = preset("olmoe-1b-7b")
        >>> Budget.of(model, model, config).equal_steps
        133
        """
        context = (config.sequence + 1) // 2
        forward = config.tokens_per_step * model_flops_per_token(student, context).total
        reading = teacher
        if isinstance(teacher, ModelConfig):
            reading = config.steps * config.tokens_per_step * model_flops_per_token(teacher, context).total
        read = (config.sequence - 1) / config.sequence if prompt else 0.0  # the last token is written, not read
        return cls(config.steps, 3.0 * forward, float(reading), share * read * config.steps * forward)

    @property
    def total(self) -> float:
        """Everything."""
        return self.steps * self.step + self.teacher + self.writing

    @property
    def equal_steps(self) -> int:
        """Steps without a teacher that cost as much, rounded down.

        >>> Budget(steps=10, step=3.0, teacher=60.0).equal_steps
        30
        """
        return int(self.total // self.step)
