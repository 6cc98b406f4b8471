"""Lab 07's references are what the training loop does; the guide's "checkpointing" saves nothing, and ours does."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from labkit.core.config import ModelConfig, MoEConfig
from labkit.course import labs
from labkit.course.attempt import attempt
from labkit.course.probe import answer_cases, probe_code, read_outcomes
from labkit.course.watch import Block, Watched, recomputed
from labkit.nn import Transformer
from labkit.train.feed import Micro
from labkit.train.forward import call, objective
from labkit.train.optim import orthogonalise
from labkit.train.schedule import Schedule
from labkit.train.settings import TrainConfig

EXERCISES = {exercise.name: exercise for exercise in labs.lab("07").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
CONFIG = ModelConfig(
    "small", 32, 2, 16, num_heads=2, num_kv_heads=1, head_dim=8, num_mtp_layers=2, qk_norm="head",
    moe=MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2),
)  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids_of(seed: int, B: int, S: int, V: int = 32) -> torch.Tensor:
    return torch.randint(V, (B, S), generator=torch.Generator().manual_seed(seed))


def model_of(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG.replace(**changes))


# ---------------------------------------------------------------------------------------- the loop does the same thing


@pytest.mark.parametrize(("warmup", "decay", "final"), [(3, 5, 0.1), (0, 4, 0.0), (6, 6, 0.5), (1, 1, 1.0)])
def test_the_schedule_is_the_loops(warmup, decay, final):
    loops = Schedule("wsd", 12, warmup, decay, final)
    yours = [PART["schedule"](step, 12, warmup, decay, final) for step in range(1, 13)]
    assert yours == pytest.approx([loops(step) for step in range(1, 13)])


def test_accumulation_is_the_loops_and_is_one_big_batch():
    """On a whole model, sequences of several lengths of real text, one micro-batch empty."""
    batches = []
    for number, real in enumerate([(9, 3), (0, 0), (5, 9)]):
        ids_BS = ids_of(number, 2, 9)
        labels_BS = ids_BS.masked_fill(torch.arange(9) >= torch.tensor(real)[:, None], -100)
        batches.append(SimpleNamespace(ids_BS=ids_BS, labels_BS=labels_BS, domains=("a", "b")))
    micros = [Micro.of(batch) for batch in batches]
    count = sum(micro.count for micro in micros)
    settings = TrainConfig(steps=1, batch=2, sequence=9, learning_rate=1e-3, accumulate=3)
    loops, yours, whole = (model_of(num_mtp_layers=0) for _ in range(3))
    for micro in micros:
        objective(call(loops, micro.ids_BS), micro, settings, count).total.backward()
    mean = PART["accumulate"](lambda ids: yours(ids).logits, [(m.ids_BS, m.target_BS) for m in micros])
    big = F.cross_entropy(
        whole(torch.cat([m.ids_BS for m in micros])).logits.flatten(0, 1),
        torch.cat([m.target_BS for m in micros]).flatten(),
    )
    big.backward()
    assert mean == pytest.approx(big.item(), rel=1e-5)
    for mine, theirs, one in zip(yours.parameters(), loops.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("real", [(9, 9, 9), (9, 4, 2)])
def test_the_multi_token_loss_is_the_loops(weight, real):
    model, ids_BS = model_of().train(), ids_of(3, 3, 9)
    labels_BS = ids_BS.masked_fill(torch.arange(9) >= torch.tensor(real)[:, None], -100)
    micro = Micro.of(SimpleNamespace(ids_BS=ids_BS, labels_BS=labels_BS, domains=("a", "a", "b")))
    output = call(model, ids_BS, mtp=True)
    assert [logits.shape[1] for logits in output.mtp_logits] == [8, 7]
    settings = TrainConfig(steps=1, batch=3, sequence=9, learning_rate=1e-3, mtp_weight=weight)
    main = objective(output, micro, settings.replace(mtp_weight=0.0), micro.count).total
    both = objective(output, micro, settings, micro.count).total
    torch.testing.assert_close(PART["mtp_loss"](output.mtp_logits, labels_BS, weight), both - main)


def test_newton_schulz_is_the_loops_on_a_stack_of_experts():
    stack = normal(4, 3, 2, 6, 10) * torch.tensor([1e-4, 1.0, 50.0])[:, None, None, None]
    torch.testing.assert_close(PART["newton_schulz"](stack), orthogonalise(stack), rtol=1e-3, atol=1e-4)


def test_newton_schulz_keeps_singular_vectors_and_brings_values_into_the_band():
    matrix = normal(5, 12, 8)
    left, values, right_T = torch.linalg.svd(matrix, full_matrices=False)
    assert values.min() / values.norm() > 0.05
    found = left.T @ PART["newton_schulz"](matrix) @ right_T.T
    assert found.diagonal().min() > 0.6
    assert found.diagonal().max() < 1.25
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


# ----------------------------------------------------------------------------------- the guide's gradient checkpointing


def kept(forward) -> int:
    """Bytes that autograd packs away for the backward pass, each storage once."""
    sizes = {}

    def pack(value):
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = forward()
    loss.backward()
    return sum(sizes.values())


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = model_of(num_mtp_layers=0).save_pretrained(tmp_path_factory.mktemp("07") / "model")

    def build(attention: str):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
        model.config.use_cache = False
        return model.train()

    return build


def test_the_guides_way_costs_memory_and_the_mended_one_saves_it(hub_model):
    ids_BS = ids_of(6, 2, 96)

    def guides():
        with torch.autocast("cpu", torch.bfloat16):
            return hub_model("eager")(ids_BS, labels=ids_BS, output_attentions=True).loss

    mended = hub_model("sdpa")
    getattr(mended, "activation_checkpointing_enable", mended.gradient_checkpointing_enable)()
    plain = kept(lambda: hub_model("sdpa")(ids_BS, labels=ids_BS).loss)
    assert kept(guides) > 1.2 * plain
    assert kept(lambda: mended(ids_BS, labels=ids_BS).loss) < 0.6 * plain


def test_recomputing_a_chain_keeps_its_inputs_only():
    weights = [normal(i, 24, 8).requires_grad_() for i in range(2)]

    def block(x, up, down):
        return x + (x @ up.T).relu() @ down

    def chain(run):
        x = normal(9, 64, 8)
        for _ in range(4):
            x = run(block, x, *weights)
        return x.square().sum()

    own = kept(lambda: chain(PART["recompute"]))
    plain = kept(lambda: chain(lambda run, *inputs: run(*inputs)))
    assert own <= 5 * 64 * 8 * 4 + sum(w.numel() * 4 for w in weights)  # four inputs and the last output
    assert plain > 3 * own


# ------------------------------------------------------------------------------------------------ what watches answers


def test_the_watch_sees_activations_that_are_held_and_forgets_those_that_are_not():
    watched, x = Watched(Block("swiglu")), normal(0, 4, 3).requires_grad_()
    up, down = normal(1, 8, 3), normal(2, 3, 4)
    y = watched(x, up, down)
    assert (watched.calls, watched.alive() > 0) == (1, True)
    del y
    with torch.no_grad():
        watched(x, up, down)
    assert (watched.calls, watched.alive()) == (2, 0)


@pytest.mark.parametrize("name", ["accumulate", "recompute"])
def test_watched_cases_cross_the_wall_of_the_sandbox(name, capsys):
    exercise = EXERCISES[name]
    cases = exercise.inputs((0,))
    assert all(case.through is not None for case in pickle.loads(pickle.dumps(cases)))
    code = probe_code(name, cases, "nonce")
    answer_cases(name, {name: exercise.reference}, code.split("'")[-4], "nonce")
    outcomes = read_outcomes(capsys.readouterr().out, "nonce", len(cases))
    assert exercise.judge()(cases, outcomes).passed


def test_a_case_goes_through_its_watch():
    case = EXERCISES["recompute"].cases(0)[0]
    assert case.through is recomputed
    value = attempt(PART["recompute"], case).value
    assert value["block ran"] == 2
    assert value["activations kept"] == 0


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("schedule", "one_step_late"),
        ("schedule", "floor"),
        ("accumulate", "mean_of_means"),
        ("accumulate", "only_the_last"),
        ("recompute", "other_random_numbers"),
        ("recompute", "twice_and_kept"),
        ("newton_schulz", "one_norm_for_all"),
        ("newton_schulz", "rounded"),
        ("mtp_loss", "shifted_by_k"),
        ("mtp_loss", "own_number_of_targets"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_gradients_that_are_missing_are_named_whatever_else_is_wrong():
    def half(block, x, *others):
        return PART["recompute"](lambda x: 1.5 * block(x, *[other.detach() for other in others]), x)

    assert EXERCISES["recompute"].test(half).diagnosis == "gradient_missing"


def test_activations_that_are_held_are_named_whatever_else_is_wrong():
    def hoards(block, *inputs):
        class Hoard(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                with torch.enable_grad():
                    ctx.kept = block(*[v.detach().requires_grad_(v.requires_grad) for v in inputs])
                return ctx.kept.detach()

            @staticmethod
            def backward(ctx, grad):
                return tuple(torch.zeros_like(v) if v.is_floating_point() else None for v in inputs)

        return Hoard.apply(*inputs)

    assert EXERCISES["recompute"].test(hoards).diagnosis == "activations_kept"


def test_no_case_of_this_lab_is_dropped_for_another():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            assert [c.label for c in exercise.inputs((seed,))] == [c.label for c in exercise.cases(seed)]


def test_the_muon_oracle_runs_in_the_inputs_own_format():
    matrix = normal(7, 5, 3)
    exact = EXERCISES["newton_schulz"].oracle.call(matrix)
    assert exact.dtype == torch.float32
    assert (exact - exact.bfloat16().float()).abs().max() > 0


def test_the_bigram_of_the_accumulation_cases_is_a_module_with_gradients():
    case = EXERCISES["accumulate"].cases(0)[2]
    value = attempt(PART["accumulate"], case).value
    assert [g.shape for g in value["gradients"]] == [t.shape for t in case.args[0]]
    assert value["sequences at once"] == 3
    assert value["micro-batches in memory"] == 1
