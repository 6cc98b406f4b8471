"""What is measured: losses by domain, however domains are given; the bar; and validation."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest
import small_runs
import torch
import torch.nn.functional as F

from labkit.train import evaluate, feed, loop, progress
from labkit.train.meter import MOST_DOMAINS, Meter
from labkit.train.tokens import TokenSource, evaluation


@dataclass
class Numbered:
    """A batch whose tokens have a domain each, as a number."""

    ids_BS: torch.Tensor
    labels_BS: torch.Tensor
    domain_BS: torch.Tensor


def by_hand(model, batches):
    """Mean loss by domain, a token at a time."""
    sums = {}
    model.eval()
    with torch.no_grad():
        for batch in batches:
            logits_BSV = model(batch.ids_BS).logits
            for row, domain in enumerate(batch.domains):
                for i in range(batch.ids_BS.shape[1] - 1):
                    if batch.labels_BS[row, i + 1] != -100:
                        loss = F.cross_entropy(logits_BSV[row, i], batch.labels_BS[row, i + 1]).item()
                        sums.setdefault(domain, []).append(loss)
    return {domain: sum(values) / len(values) for domain, values in sums.items()}


def masked(number=3):
    source = small_runs.Source()
    batches = [source.next(4, 12) for _ in range(number)]
    for batch in batches:
        batch.labels_BS[1, 3:8] = -100
    return batches


def test_losses_are_means_over_the_tokens_of_a_domain():
    model = small_runs.model().train()
    got = evaluate.losses(model, masked())
    assert model.training
    assert got == pytest.approx(by_hand(model, masked()), rel=1e-5)
    assert list(got) == ["code", "english", "arithmetic", "records"]
    assert all(p.grad is None for p in model.parameters())


def test_losses_under_autocast_are_close():
    model = small_runs.model()
    exact, half = evaluate.losses(model, masked()), evaluate.losses(model, masked(), autocast=torch.bfloat16)
    assert half == pytest.approx(exact, rel=0.01)
    assert half != exact


def test_domains_may_be_numbers_of_tokens():
    batch = masked(1)[0]
    numbers_BS = (torch.arange(12) >= 7).long().expand(4, 12)  # the first seven tokens are code, the rest english
    model = small_runs.model()
    got = evaluate.losses(model, [Numbered(batch.ids_BS, batch.labels_BS, numbers_BS)], names=("code", "english"))
    logits_BSV = model(batch.ids_BS).logits
    loss_BS = F.cross_entropy(logits_BSV[:, :-1].transpose(1, 2), batch.labels_BS[:, 1:], reduction="none")
    real_BS = batch.labels_BS[:, 1:] != -100
    assert got["code"] == pytest.approx((loss_BS[:, :6].sum() / real_BS[:, :6].sum()).item(), rel=1e-5)
    assert got["english"] == pytest.approx((loss_BS[:, 6:].sum() / real_BS[:, 6:].sum()).item(), rel=1e-5)
    unnamed = evaluate.losses(model, [Numbered(batch.ids_BS, batch.labels_BS, numbers_BS)])
    assert list(unnamed) == ["domain 0", "domain 1"]


def test_nothing_to_learn_is_an_error():
    with pytest.raises(ValueError, match="no batch with a label"):
        evaluate.losses(small_runs.model(), [])


def test_a_meter_goes_on_from_its_state():
    micros = [feed.Micro.of(batch) for batch in masked(4)]
    losses = [torch.rand(4, 12, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for micro, loss_BS in zip(micros, losses, strict=True):
        loss_BS[micro.target_BS == -100] = 0
    whole, first, second = Meter("cpu"), Meter("cpu"), Meter("cpu")
    for i in range(4):
        whole.add(losses[i], micros[i])
        whole.add_loads([torch.tensor([i, 1])])
    for i in (0, 1):
        first.add(losses[i], micros[i])
        first.add_loads([torch.tensor([i, 1])])
    second.load(first.state())
    for i in (2, 3):
        second.add(losses[i], micros[i])
        second.add_loads([torch.tensor([i, 1])])
    assert second.by_domain() == whole.by_domain()
    assert second.loss() == whole.loss()
    assert second.violations() == whole.violations() == [pytest.approx(6 / 5 - 1)]


def test_too_many_domains_are_refused():
    batch = masked(1)[0]
    meter = Meter("cpu")

    def add(number):
        names = tuple(f"{number}/{row}" for row in range(4))
        meter.add(torch.zeros(4, 12), feed.Micro.of(small_runs.Batch(batch.ids_BS, batch.labels_BS, names)))

    for number in range(MOST_DOMAINS // 4):
        add(number)
    with pytest.raises(ValueError, match="more than 64 domains"):
        add(number + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: small_runs.Batch(b.ids_BS, b.labels_BS, b.domains[:2]), "4 sequences has 2 domains"),
        (lambda b: Numbered(b.ids_BS, b.labels_BS, torch.zeros(4)), "domain_BS is"),
        (lambda b: small_runs.Batch(b.ids_BS[0], b.labels_BS[0], b.domains), "give both as"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        feed.Micro.of(change(masked(1)[0]))


def token_files(tmp_path):
    from labkit.train import data
    from labkit.train.tokenizer import byte_tokenizer
    from labkit.train.tokens import write_tokens

    return write_tokens(tmp_path / "tokens", data.corpus(bytes_per_domain=20_000), byte_tokenizer())


def test_validation_by_source_and_by_batches(tmp_path):
    model, validation = small_runs.model(), small_runs.Source(split="validation")
    rows = loop.train(model, small_runs.Source(), small_runs.config(validate_every=4), validation=validation).rows
    assert [("validation" in row) for row in rows] == [False, False, False, True, False, True]
    assert validation.count == 0
    batches = list(feed.batches(small_runs.Source(split="validation"), 4, 24))
    assert rows[-1]["validation"] == evaluate.losses(model, batches)
    again = loop.train(small_runs.model(), small_runs.Source(), small_runs.config(), validation=batches)
    assert again.validation == again.rows[-1]["validation"] == rows[-1]["validation"]


def test_validating_changes_no_update():
    moe = small_runs.model_config().moe.replace(noise_std=0.5)
    validation = small_runs.Source(split="validation")
    with_it, without = (
        loop.train(small_runs.model(moe=moe), small_runs.Source(), small_runs.config(validate_every=1), validation=v)
        for v in (validation, None)
    )
    assert [row["loss"] for row in with_it.rows] == [row["loss"] for row in without.rows]


def test_token_files_feed_a_run_that_can_stop_anywhere(tmp_path):
    files = token_files(tmp_path)
    config = small_runs.config(save_every=2)

    def run(folder, stop_after=None):
        def stop(step):
            if step.step == stop_after:
                raise KeyboardInterrupt

        model = small_runs.model(vocab_size=300)
        held = evaluation(files["validation"], 24, max_tokens=400)
        return loop.train(model, TokenSource(files["train"]), config, folder=folder, on_step=stop, validation=held)

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=3)
    assert small_runs.told(run(tmp_path / "parts")) == small_runs.told(whole)


def test_lines_and_bar_and_silence(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.choose("auto") == "quiet"
    assert progress.choose("bar") == "bar"
    for style in ("quiet", "plain", "bar"):
        loop.train(small_runs.model(), small_runs.Source(), small_runs.config(steps=2, progress=style))
        told = capsys.readouterr()
        assert told.out == ""
        assert {"quiet": told.err == "", "plain": "step 2/2  loss " in told.err, "bar": "2/2" in told.err}[style]


@pytest.mark.parametrize(
    ("terminal", "ci", "kernel", "style"),
    [(True, "", False, "bar"), (True, "1", False, "quiet"), (True, "", True, "quiet"), (False, "", False, "quiet")],
)
def test_a_bar_is_for_terminals_of_people(monkeypatch, terminal, ci, kernel, style):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("CI", ci)
    if kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert progress.choose("auto") == style
