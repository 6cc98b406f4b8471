"""On a GPU: nothing waits between log steps, results are those of the CPU, and a comparison with `Trainer`'s speed.

`python tests/train/test_loop_gpu.py` prints the comparison alone.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from pathlib import Path

import pytest
import small_runs
import torch

from labkit.core import runtime
from labkit.kernels import dispatch
from labkit.nn.model import Transformer
from labkit.train import loop
from labkit.train.meter import flops_per_token
from labkit.train.pace import peak_flops

pytestmark = pytest.mark.gpu


def wide_model(seed=0, **changes):
    moe = small_runs.model_config().moe.replace(d_model=64, d_expert=32)
    sizes = {"d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "moe": moe, "num_layers": 3}
    return small_runs.model(seed, **{**sizes, **changes})


def config(**changes):
    return small_runs.config(**{"device": "auto", "batch": 8, "sequence": 64, **changes})


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, {"recompute": "selective"}, {"bias_rate": 1e-3, "balance_loss": 0.01,
                                                                      "z_loss": 1e-3, "mtp_weight": 0.3}])  # fmt: skip
def test_nothing_waits_for_the_device_between_log_steps(optimizer, changes):
    def watch(step):
        if step.step == 3:
            torch.cuda.set_sync_debug_mode("error")
        if step.step == 8:
            torch.cuda.set_sync_debug_mode("default")

    settings = config(steps=9, log_every=9, accumulate=2, optimizer=optimizer, **changes)
    try:
        rows = loop.train(wide_model(num_mtp_layers=1), small_runs.Source(), settings, on_step=watch).rows
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["step"] for row in rows] == [9]


def test_losses_are_those_of_the_cpu():
    here, there = (
        loop.train(wide_model(), small_runs.Source(), config(device=device, precision="float32", steps=10)).rows
        for device in ("cpu", "cuda")
    )
    assert [row["loss"] for row in there] == pytest.approx([row["loss"] for row in here], rel=1e-3)


def test_automatic_precision_and_utilisation():
    model = wide_model()
    row = loop.train(model, small_runs.Source(), config()).rows[-1]
    peak = peak_flops(torch.device("cuda"), torch.bfloat16 if runtime.capability("bf16").available else None)
    if peak is None:
        assert row["mfu"] is None
    else:
        assert row["mfu"] == pytest.approx(row["tokens_per_s"] * flops_per_token(model, 64) / peak)
        assert 0 < row["mfu"] < 1
    assert row["memory_bytes"] <= torch.cuda.max_memory_allocated()


def test_recomputation_saves_memory_and_changes_little():
    peaks, losses = {}, {}
    for policy in ("none", "selective", "full"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        settings = config(batch=32, sequence=256, recompute=policy, steps=4, precision="bfloat16")
        rows = loop.train(wide_model(num_layers=6), small_runs.Source(), settings).rows
        peaks[policy], losses[policy] = rows[-1]["memory_bytes"], [row["loss"] for row in rows]
    assert peaks["full"] < peaks["selective"] < peaks["none"]
    assert losses["full"] == pytest.approx(losses["none"], rel=1e-2)
    assert losses["selective"] == pytest.approx(losses["none"], rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_where_it_stopped(tmp_path, optimizer):
    settings = config(steps=6, optimizer=optimizer, precision="float32", save_every=2)

    def run(folder, stop_after=None):
        def stop(step):
            if step.step == stop_after:
                raise KeyboardInterrupt

        return loop.train(wide_model(), small_runs.Source(), settings, folder=folder, on_step=stop).rows

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=3)
    assert [r["loss"] for r in run(tmp_path / "parts")] == pytest.approx([r["loss"] for r in whole], rel=1e-4)


def test_a_bad_step_changes_nothing_and_is_named():
    model, states, done = wide_model(), {}, []

    def spoil(module, inputs, output):
        return output * float("nan") if len(done) == 2 else output

    model.layers[1].ffn.experts.register_forward_hook(spoil)

    def remember(step):
        states[step.step] = {name: value.clone() for name, value in step.model.state_dict().items()}
        done.extend([None] if step.step < 3 else [])  # what is computed once more is spoilt too

    with pytest.raises(loop.Diverged, match=r"the output of layers.1.ffn.experts") as caught:
        loop.train(model, small_runs.Source(), config(steps=3, log_every=3), on_step=remember)
    assert caught.value.step == 3
    torch.testing.assert_close(dict(model.state_dict()), states[2], rtol=0, atol=0)


class Random:
    """Random tokens in a fixed order: the same batches for both loops."""

    def __init__(self, steps, batch, sequence, vocab_size):
        generator = torch.Generator().manual_seed(0)
        self.ids_NS = torch.randint(vocab_size, (steps * batch, sequence), generator=generator)
        self.count = 0

    def next(self, batch, sequence):
        ids_BS = self.ids_NS[self.count * batch : (self.count + 1) * batch]
        self.count += 1
        return small_runs.Batch(ids_BS, ids_BS.clone(), ("random",) * batch)

    def state(self):
        return {"count": self.count}

    def load(self, state):
        self.count = state["count"]


class Stopwatch:
    """Seconds between two steps, when the device has done both."""

    def __init__(self, first, last):
        self.times, self.marks = {}, (first, last)

    def __call__(self, step):
        if step in self.marks:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[step] = time.perf_counter()

    @property
    def seconds(self):
        return self.times[self.marks[1]] - self.times[self.marks[0]]


def compare_with_trainer(
    rounds=3, steps=60, warm=20, batch=64, sequence=512, layers=8, width=256, experts=16, expert_width=128, vocab=4096,
    compile=False,
):  # fmt: skip
    """Tokens/s of the loop and of a plain `Trainer`: one Qwen3-MoE, the same batches, bfloat16, fused AdamW, in turns.

    Returns a dict from name to a list of tokens/s, a number for each round, and prints them.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(0)
    model_config = Qwen3MoeConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4, num_experts=experts, num_experts_per_tok=2,
        moe_intermediate_size=expert_width, norm_topk_prob=True, use_cache=False, tie_word_embeddings=True,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    Qwen3MoeForCausalLM(model_config).save_pretrained(folder / "model")
    settings = loop.TrainConfig(
        steps=steps, batch=batch, sequence=sequence, learning_rate=1e-3, schedule="constant", log_every=10,
        precision="bfloat16", betas=(0.9, 0.95), compile=compile, progress="quiet",
    )  # fmt: skip

    def ours(implementation="auto"):
        forced = contextlib.nullcontext() if implementation == "auto" else dispatch.force(implementation)
        model = Transformer.from_pretrained(folder / "model")
        watch = Stopwatch(warm, steps)
        source = Random(steps, batch, sequence, vocab)
        with forced:
            rows = loop.train(model, source, settings, on_step=lambda step: watch(step.step)).rows
        return watch.seconds, [row["loss"] for row in rows], rows[-1]["mfu"]

    def theirs():
        watch = Stopwatch(warm, steps)

        class Watch(TrainerCallback):
            def on_step_end(self, arguments, state, control, **named):
                watch(state.global_step)

        arguments = TrainingArguments(
            str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=batch, bf16=True, learning_rate=1e-3,
            lr_scheduler_type="constant", weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, max_grad_norm=1.0,
            optim="adamw_torch_fused", report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=10,
            torch_compile=compile, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        ids_NS = Random(steps, batch, sequence, vocab).ids_NS
        rows = [{"input_ids": ids_S, "labels": ids_S} for ids_S in ids_NS]
        model = Qwen3MoeForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[Watch()])
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
        trainer.train()
        logged = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        return watch.seconds, logged, getattr(model.config, "_experts_implementation", "unknown")

    tokens = (steps - warm) * batch * sequence
    arms = {"Trainer": theirs, "labkit": ours, "labkit, grouped_mm": functools.partial(ours, "grouped_mm")}
    speeds, losses = {name: [] for name in arms}, {}
    for _ in range(rounds):
        for name, run in arms.items():
            seconds, losses[name], note = run()
            speeds[name].append(tokens / seconds)
            print(
                f"{name:<18} {tokens / seconds:>12,.0f} tokens/s  last loss {losses[name][-1]:.4f}  ({note})",
                flush=True,
            )
    middle = {name: sorted(found)[rounds // 2] for name, found in speeds.items()}
    told = ", ".join(f"labkit / {name} = {middle['labkit'] / middle[name]:.2f}" for name in middle if name != "labkit")
    print(f"{runtime.device_name(runtime.device())}, torch {torch.__version__}, medians: {told}")
    return speeds, losses


def test_the_comparison_with_trainer_runs_on_equal_terms(capsys):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    with capsys.disabled():
        speeds, losses = compare_with_trainer(rounds=1, steps=30, warm=10)
    assert losses["labkit"] == pytest.approx(losses["Trainer"], rel=5e-3)
    assert losses["labkit"] == pytest.approx(losses["labkit, grouped_mm"], rel=5e-3)
    assert all(speed > 0 for found in speeds.values() for speed in found)


if __name__ == "__main__":
    options = dict(argument.split("=") for argument in sys.argv[1:])
    compare_with_trainer(**{name: int(value) for name, value in options.items()})
