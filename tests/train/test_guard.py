"""A run that diverges stops clean: it names the step, the batch and the place, and keeps what was good."""

from __future__ import annotations

import pytest
import small_runs
import torch

from labkit.train import checkpoint, guard, loop

STEP, MICRO, ROW = 5, 1, 2  # where the poison is: sequence 2 of a batch is of the third domain


class Poisoned(small_runs.Source):
    """One sequence begins with a byte that no text has."""

    def next(self, batch, sequence):
        made = super().next(batch, sequence)
        if self.count == 2 * (STEP - 1) + MICRO + 1:
            made.ids_BS[ROW, 0] = 255
        return made


class Explode(torch.autograd.Function):
    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context, grad):
        return grad * context.factor, None


def poison(model, name, factor=float("nan"), backward=False):
    """The module's output, or its gradient, is multiplied where the poisoned byte is read."""
    seen = {}
    model.register_forward_pre_hook(lambda module, inputs: seen.update(ids_BS=inputs[0]))

    def spoil(module, inputs, output):
        bad_BS = (seen["ids_BS"] == 255).any(1, keepdim=True).expand_as(seen["ids_BS"])
        if not bad_BS.any():
            return output
        bad = bad_BS.reshape(*output.shape[:-1], 1)
        if backward:
            return torch.where(bad, Explode.apply(output, factor), output)
        return torch.where(bad, output * factor, output)

    model.get_submodule(name).register_forward_hook(spoil)


def diverge(model, folder=None, **changes):
    config = small_runs.config(**{"steps": 9, "accumulate": 2, "log_every": 9, "clip": 1.0, **changes})
    states = {}

    def remember(step):
        states[step.step] = {name: value.clone() for name, value in step.model.state_dict().items()}

    with pytest.raises(loop.Diverged) as caught:
        loop.train(model, Poisoned(), config, folder=folder, on_step=remember)
    return caught.value, states


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["layers.0.attention.query", "layers.1.ffn.experts", "head"])
def test_the_first_bad_output_is_found_and_the_weights_stay(name, optimizer):
    model = small_runs.model()
    poison(model, name)
    error, states = diverge(model, optimizer=optimizer, bias_rate=0.01)
    assert (error.step, error.micro, error.domains, error.checkpoint) == (STEP, MICRO, ("arithmetic",), None)
    assert error.where == f"the output of {name}"
    assert "step 5, micro-batch 1 (arithmetic): the output of" in str(error)
    assert "there is no checkpoint" in str(error)
    torch.testing.assert_close(dict(model.state_dict()), states[STEP - 1], rtol=0, atol=0)
    assert max(states) == 9  # the host looked late, and nothing moved in between


def test_a_bad_gradient_is_found():
    model = small_runs.model()
    poison(model, "layers.1.ffn.experts", float("inf"), backward=True)
    error, states = diverge(model)
    assert (error.step, error.micro) == (STEP, MICRO)
    assert error.where.startswith("the gradient of layers.1.ffn.experts.")
    torch.testing.assert_close(dict(model.state_dict()), states[STEP - 1], rtol=0, atol=0)


def test_a_norm_that_overflows_is_found():
    model = small_runs.model()
    poison(model, "layers.1.ffn.experts", 1e30, backward=True)
    error, states = diverge(model)
    assert (error.step, error.micro, error.domains) == (STEP, None, ())
    assert error.where == "the norm of all gradients"
    torch.testing.assert_close(dict(model.state_dict()), states[STEP - 1], rtol=0, atol=0)


def test_a_parameter_that_is_bad_already_is_named():
    model = small_runs.model()
    model.layers[1].norm_ffn.weight.data[3] = float("nan")
    config = small_runs.config()
    with pytest.raises(loop.Diverged, match=r"parameter layers.1.norm_ffn.weight is not finite") as caught:
        loop.train(model, small_runs.Source(), config)
    assert caught.value.step == 1


def test_the_last_good_checkpoint_is_kept_and_named(tmp_path):
    model = small_runs.model()
    poison(model, "layers.1.ffn.experts")
    error, _ = diverge(model, tmp_path, save_every=2)
    assert error.checkpoint == tmp_path / "step-00000004"
    assert checkpoint.checkpoints(tmp_path)[-1] == error.checkpoint
    checkpoint.verify(error.checkpoint)
    assert "step-00000004" in str(error)


def test_it_is_found_under_recomputation_and_autocast_too():
    model = small_runs.model()
    poison(model, "layers.1.ffn.experts")
    error, _ = diverge(model, recompute="full", precision="bfloat16")
    assert (error.step, error.where) == (STEP, "the output of layers.1.ffn.experts")


def test_the_hooks_are_gone_afterwards():
    model = small_runs.model()
    with guard.watching(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_finite_steps_are_forgotten():
    watch = guard.Guard("cpu")
    watch.keep(1, ["batch"])
    assert watch.watch(1, torch.tensor(1.0), torch.tensor(1.0)).item() == 0
    assert watch.first_bad_step() == 0
    with pytest.raises(KeyError):
        watch.micros(1)


def test_the_first_bad_step_is_told_even_if_others_follow():
    watch, bad, good = guard.Guard("cpu"), torch.tensor(float("inf")), torch.tensor(1.0)
    skips = [watch.watch(step, *pair).item() for step, pair in enumerate([(good, good), (good, bad), (bad, good)], 1)]
    assert skips == [0, 1, 1]
    assert watch.first_bad_step() == 2
