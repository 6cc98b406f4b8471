"""Step by step the losses are those of transformers' `Trainer` on the same batches, from the same weights."""

from __future__ import annotations

import pytest
import small_runs
import torch

from labkit.nn.model import Transformer
from labkit.train import loop

STEPS, BATCH, SEQUENCE = 50, 4, 24


class Masked(small_runs.Source):
    """Parts of the labels are not learned, so that batches count differently."""

    def next(self, batch, sequence):
        made = super().next(batch, sequence)
        made.labels_BS[:, : 1 + 4 * (self.count % 5)] = -100
        return made


def build(aux=0.0, layers=2, dense=()):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        mlp_only_layers=list(dense), norm_topk_prob=True, router_aux_loss_coef=aux, output_router_logits=aux > 0,
        tie_word_embeddings=False, use_cache=False, initializer_range=0.1,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def theirs(model, config, folder):
    """The losses of `Trainer`'s steps."""
    from transformers import Trainer, TrainingArguments

    source = Masked()
    drawn = [source.next(BATCH, SEQUENCE) for _ in range(STEPS * config.accumulate)]
    rows = [
        {"input_ids": ids_S, "labels": labels_S}
        for batch in drawn
        for ids_S, labels_S in zip(batch.ids_BS, batch.labels_BS, strict=True)
    ]

    class Recorded(Trainer):
        losses = ()

        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(rows, batch_size=BATCH)  # in order, unlike Trainer's own

        def training_step(self, *arguments, **named):
            loss = super().training_step(*arguments, **named)
            self.losses = (*self.losses, loss.item())
            return loss

    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay, adam_beta1=config.betas[0],
        adam_beta2=config.betas[1], adam_epsilon=config.eps, max_grad_norm=config.clip, optim="adamw_torch",
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Recorded(model, arguments, train_dataset=rows)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda done: config.rates(min(done + 1, STEPS))
    )
    trainer.train()
    return [sum(trainer.losses[i : i + config.accumulate]) for i in range(0, len(trainer.losses), config.accumulate)]


def settings(**changes):
    return small_runs.config(
        **{"steps": STEPS, "batch": BATCH, "sequence": SEQUENCE, "warmup": 5, "learning_rate": 2e-3, **changes}
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_curve_is_the_trainers(tmp_path, accumulate):
    config = settings(accumulate=accumulate)
    build().save_pretrained(tmp_path / "model")
    ours = Transformer.from_pretrained(tmp_path / "model")
    rows = loop.train(ours, Masked(), config).rows
    expected = theirs(build(), config, tmp_path / "trainer")
    assert len(rows) == len(expected) == STEPS
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=2e-4)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


def test_their_model_in_our_loop_gives_the_trainers_curve(tmp_path):
    config = settings()
    rows = loop.train(build(), Masked(), config).rows
    assert [row["loss"] for row in rows] == pytest.approx(theirs(build(), config, tmp_path), rel=2e-4)


def test_the_balancing_loss_is_the_trainers_too(tmp_path):
    """With one sparse layer, where a mean over layers and transformers' one load for all layers are the same."""
    config = settings(balance_loss=0.1)
    build(0.1, dense=[0]).save_pretrained(tmp_path / "model")
    steps = []
    ours = Transformer.from_pretrained(tmp_path / "model")
    rows = loop.train(ours, Masked(), config, on_step=lambda step: steps.append(step.routing)).rows
    from labkit.train.balance import switch_loss

    # theirs tells the sum; ours the cross-entropy
    sums = [row["loss"] + switch_loss(routing, alpha=0.1).item() for row, routing in zip(rows, steps, strict=True)]
    assert sums == pytest.approx(theirs(build(0.1, dense=[0]), config, tmp_path / "trainer"), rel=2e-4)
