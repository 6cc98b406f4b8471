"""The loop does what a plain loop would do, and says what it did."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
import torch.nn.functional as F

from labkit.core.cost import model_flops_per_token
from labkit.core.metrics import max_violation
from labkit.nn import WindowModel
from labkit.train import balance, forward, loop
from labkit.train.feed import Micro
from labkit.train.meter import flops_per_token
from labkit.train.pace import peak_flops


def plain(model, source, config):
    """The same training, written down without anything clever; the losses of its steps."""
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": config.weight_decay if p.ndim > 1 else 0.0} for p in model.parameters()],
        lr=0.0, betas=config.betas, eps=config.eps,
    )  # fmt: skip
    losses = []
    for step in range(1, config.steps + 1):
        micros = [source.next(config.batch, config.sequence) for _ in range(config.accumulate)]
        ids_BS = torch.cat([micro.ids_BS for micro in micros])
        labels_BS = torch.cat([micro.labels_BS for micro in micros])
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.rates(step)
        loss = F.cross_entropy(model(ids_BS, return_mtp=False).logits[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


class Masked(small_runs.Source):
    """A source in which a part of the labels, another in every batch, is not learned."""

    def next(self, batch, sequence):
        made = super().next(batch, sequence)
        made.labels_BS[:, : 5 * (self.count % 4)] = -100
        return made


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_losses_and_weights_are_those_of_a_plain_loop(accumulate, precision):
    config = small_runs.config(accumulate=accumulate, precision=precision, clip=0.7, steps=8)
    ours, theirs = small_runs.model(), small_runs.model()
    result = loop.train(ours, Masked(), config)
    assert [row["loss"] for row in result.rows] == pytest.approx(plain(theirs, Masked(), config), rel=1e-5)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-3, atol=1e-5)
    assert (result.step, result.stopped, result.checkpoint, result.notes) == (8, "finished", None, ())


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputation_changes_nothing(policy):
    runs = [
        loop.train(small_runs.model(), small_runs.Source(), small_runs.config(recompute=name, precision="bfloat16"))
        for name in ("none", policy)
    ]
    assert small_runs.told(runs[0]) == small_runs.told(runs[1])


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights():
    model, seen = small_runs.model(), set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    model.layers[1].ffn.experts.register_forward_hook(lambda m, i, o: None)
    rows = loop.train(model, small_runs.Source(), small_runs.config(precision="bfloat16")).rows
    exact = loop.train(small_runs.model(), small_runs.Source(), small_runs.config(precision="float32")).rows
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert rows[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.01)
    assert rows[-1]["loss"] != exact[-1]["loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(optimizer):
    config = small_runs.config(steps=60, learning_rate=1e-2, optimizer=optimizer, log_every=20, batch=8)
    rows = loop.train(small_runs.model(), small_runs.Source(), config).rows
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


def test_a_line_of_the_log_says_everything():
    model, source = small_runs.model(), small_runs.Source()
    steps = []
    config = small_runs.config(log_every=3, accumulate=2)
    rows = loop.train(model, source, config, on_step=steps.append).rows
    assert [row["step"] for row in rows] == [3, 6]
    row = rows[0]
    assert set(row) == {"step", "loss", "loss_by_domain", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "mfu",
                        "max_violation", "memory_bytes"}  # fmt: skip
    assert row["loss"] == pytest.approx(sum(s.loss.item() for s in steps[:3]) / 3)  # equally many labels in each
    assert list(row["loss_by_domain"]) == ["code", "english", "arithmetic", "records"]
    assert row["loss"] == pytest.approx(sum(row["loss_by_domain"].values()) / 4)
    assert row["learning_rate"] == steps[2].learning_rate == config.learning_rate * config.rates(3)
    assert row["grad_norm"] == pytest.approx(steps[2].grad_norm.item())
    assert row["tokens"] == 3 * 2 * 4 * 24
    assert row["mfu"] is None
    assert len(row["max_violation"]) == 1  # the first layer is dense
    assert row["memory_bytes"] > 10**7
    assert row["tokens_per_s"] > 0


def test_the_load_is_that_of_all_micro_batches_since_the_last_line():
    model, records = small_runs.model(), []
    model.layers[1].ffn.router.register_forward_hook(lambda module, inputs, output: records.append(output))
    rows = loop.train(model, small_runs.Source(), small_runs.config(log_every=3, accumulate=2)).rows
    load_E = sum(record.tokens_per_expert_E for record in records[6:]).double()
    assert rows[1]["max_violation"] == [pytest.approx((load_E.max() / load_E.mean() - 1).item())]
    assert rows[1]["max_violation"][0] < max(max_violation(record) for record in records[6:])


def test_the_selection_bias_moves_by_the_load_of_the_whole_step():
    model, records, biases = small_runs.model(), [], []
    router = model.layers[1].ffn.router
    router.register_forward_hook(lambda module, inputs, output: records.append(output))
    config = small_runs.config(accumulate=2, bias_rate=0.01, steps=3)
    loop.train(model, small_runs.Source(), config, on_step=lambda step: biases.append(router.expert_bias_E.clone()))
    bias_E = torch.zeros(4)
    for step in range(3):
        load_E = records[2 * step].tokens_per_expert_E + records[2 * step + 1].tokens_per_expert_E
        bias_E = balance.update_bias(bias_E, load_E, rate=0.01)
        assert torch.equal(biases[step], bias_E)
    assert bias_E.any()


def test_multi_token_routers_get_their_bias_too():
    model = small_runs.model(num_mtp_layers=1)
    loop.train(model, small_runs.Source(), small_runs.config(bias_rate=0.01, mtp_weight=0.3))
    assert model.mtp[0].block.ffn.router.expert_bias_E.any()
    assert model.layers[1].ffn.router.expert_bias_E.any()


def test_without_their_weight_multi_token_modules_do_not_run():
    model = small_runs.model(num_mtp_layers=1)
    before = {name: value.clone() for name, value in model.mtp.state_dict().items()}
    loop.train(model, small_runs.Source(), small_runs.config(bias_rate=0.01))
    torch.testing.assert_close(dict(model.mtp.state_dict()), before, rtol=0, atol=0)
    assert model.layers[1].ffn.router.expert_bias_E.any()


def test_the_objective_is_the_sum_of_its_parts():
    model = small_runs.model(num_layers=3, num_mtp_layers=2).train()
    config = small_runs.config(accumulate=2, balance_loss=0.1, z_loss=0.01, mtp_weight=0.3)
    batch = Masked().next(4, 24)
    micro, count = Micro.of(batch), 200
    output = model(batch.ids_BS, return_routing=True)
    got = forward.objective(forward.call(model, batch.ids_BS, mtp=True), micro, config, count)
    labels_BS = batch.labels_BS
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten(), reduction="sum") / count
    for depth, logits_BSV in enumerate(output.mtp_logits, 1):  # position i predicts token i + depth + 1
        ahead = F.cross_entropy(
            logits_BSV[:, : 24 - depth - 1].flatten(0, 1), labels_BS[:, depth + 1 :].flatten(), reduction="sum"
        )
        expected = expected + 0.3 / 2 * ahead / count
    records = (*output.routing, *output.mtp_routing)
    assert len(records) == 4
    for record in records:
        expected = expected + balance.switch_loss(record, alpha=0.1) / 4 / 2
        expected = expected + balance.z_loss(record, coefficient=0.01) / 4 / 2
    torch.testing.assert_close(got.total, expected)


def test_a_balancing_loss_balances():
    def worst(coefficient):
        config = small_runs.config(steps=40, balance_loss=coefficient, learning_rate=1e-2, log_every=40)
        return loop.train(small_runs.model(), small_runs.Source(), config).rows[-1]["max_violation"][0]

    assert worst(1.0) < 0.7 * worst(0.0)


def test_a_window_model_and_a_transformers_model_train_too():
    moe = small_runs.model_config().moe.replace(selection_bias=False)
    torch.manual_seed(0)
    row = loop.train(WindowModel(moe), small_runs.Source(), small_runs.config(balance_loss=0.01)).rows[-1]
    assert len(row["max_violation"]) == 1
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {
        "vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 1, "num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    row = loop.train(model, small_runs.Source(), small_runs.config(recompute="full")).rows[-1]
    assert row["max_violation"] == []
    assert math.isfinite(row["loss"])


def test_the_source_is_left_where_training_stopped():
    source = small_runs.Source()

    def stop(step):
        if step.step == 2:
            raise KeyboardInterrupt

    loop.train(small_runs.model(), source, small_runs.config(accumulate=2), on_step=stop)
    assert source.count == 4
    loop.train(small_runs.model(), source, small_runs.config())
    assert source.count == 10


def test_the_mode_is_put_back_and_training_is_on_meanwhile():
    model, modes = small_runs.model().eval(), []
    loop.train(model, small_runs.Source(), small_runs.config(), on_step=lambda step: modes.append(step.model.training))
    assert all(modes)
    assert not model.training


def test_the_seed_decides_everything():
    moe = small_runs.model_config().moe.replace(noise_std=0.5)

    def run(seed):
        return small_runs.told(loop.train(small_runs.model(moe=moe), small_runs.Source(), small_runs.config(seed=seed)))

    assert run(1) == run(1) != run(2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it where it resumes
def test_compilation_is_used_where_asked_for(monkeypatch):
    asked, compiled = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or compiled(model, backend="eager"))
    config = small_runs.config(steps=2, precision="bfloat16")
    plain = loop.train(small_runs.model(), small_runs.Source(), config)
    model = small_runs.model()
    result = loop.train(model, small_runs.Source(), config.replace(compile=True))
    assert asked == [model]
    assert result.rows[-1]["loss"] == pytest.approx(plain.rows[-1]["loss"], rel=1e-6)
    torch._dynamo.reset()


def test_flops_are_three_forward_passes_and_the_cpu_has_no_peak():
    model = small_runs.model()
    assert flops_per_token(model, 99) == 3 * model_flops_per_token(model.config, 50).total
    assert flops_per_token(torch.nn.Linear(2, 2), 99) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; give a whole number of 1 or more"),
        ({"batch": True}, "batch is True"),
        ({"sequence": 1}, "the last token predicts nothing"),
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"clip": -1.0}, "clip is -1.0; give a number of 0 or more"),
        ({"optimizer": "sgd"}, "choose one of adamw, muon"),
        ({"recompute": "some"}, "choose one of none, full, selective"),
        ({"schedule": "wsd"}, "decay of 0 steps"),
        ({"warmup": 7}, "warm-up of 7"),
        ({"precision": "half"}, "choose one of auto, bfloat16, float32"),
    ],
)
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        small_runs.config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bias_rate": 0.1}, "no router has a selection bias"),
        ({"balance_loss": 0.1}, "shows no routing"),
        ({"mtp_weight": 0.1}, "has no multi-token modules"),
        ({"recompute": "full"}, "no list called `layers`"),
    ],
)
def test_what_the_model_lacks_is_refused(changes, words):
    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(256, 256)

        def forward(self, ids_BS):
            return forward.Forward(self.embed(ids_BS))

    loop.train(Dense(), small_runs.Source(), small_runs.config())
    with pytest.raises(ValueError, match=words):
        loop.train(Dense(), small_runs.Source(), small_runs.config(**changes))


def test_batches_without_a_label_or_of_other_shapes_are_refused():
    class Odd(small_runs.Source):
        def next(self, batch, sequence):
            made = super().next(batch, sequence)
            return small_runs.Batch(made.ids_BS, self.odd(made.labels_BS), made.domains)

    for odd, words in (
        (lambda labels: torch.full_like(labels, -100), "step 1 has no label"),
        (lambda labels: labels[:, 1:], "give both as"),
    ):
        Odd.odd = staticmethod(odd)
        with pytest.raises(ValueError, match=words):
            loop.train(small_runs.model(), Odd(), small_runs.config())
