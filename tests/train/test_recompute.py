"""Activation checkpointing: the same gradients bit for bit, fewer bytes kept, and work really done twice."""

from __future__ import annotations

import contextlib

import pytest
import small_runs
import torch
from torch import nn

from labkit.train.crossentropy import shifted, token_losses
from labkit.train.recompute import blocks_of, recompute


def gradients(model, policy, autocast=False):
    ids_BS = small_runs.Source().next(4, 32).ids_BS
    torch.manual_seed(5)  # the routers' noise
    model.zero_grad()
    with recompute(model, policy):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            output = model(ids_BS, return_routing=True)
        loss = token_losses(output.logits, shifted(ids_BS)).mean()
        loss = loss + sum(logits.square().mean() for logits in output.mtp_logits)
        (loss + 1e-3 * sum(r.logits_TE.square().mean() for r in output.routing)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def noisy_model(**changes):
    moe = small_runs.model_config().moe.replace(noise_std=0.5)
    return small_runs.model(moe=moe, num_layers=3, **changes).train()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", ["full", "selective"])
def test_gradients_are_the_same_bit_for_bit(policy, autocast):
    model = noisy_model()
    plain, again = gradients(model, "none", autocast), gradients(model, policy, autocast)
    assert plain.keys() == again.keys()
    for name in plain:
        assert torch.equal(plain[name], again[name]), name


def test_latent_attention_and_multi_token_modules_are_recomputed_too():
    changes = {
        "attention": "mla", "num_kv_heads": 2, "head_dim": 8, "mla_kv_rank": 6, "mla_nope_dim": 4, "mla_rope_dim": 4,
        "mla_v_dim": 4, "num_mtp_layers": 1,
    }  # fmt: skip
    model = noisy_model(**changes)
    assert len(blocks_of(model)) == 4
    plain = gradients(model, "none")
    for policy in ("full", "selective"):
        again = gradients(model, policy)
        assert all(torch.equal(plain[name], again[name]) for name in plain)


def kept_bytes(policy):
    """Bytes that autograd keeps for the backward pass, each storage once."""
    model, kept = noisy_model(), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used again
        return tensor

    ids_BS = small_runs.Source().next(4, 32).ids_BS
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), recompute(model, policy):
        model(ids_BS).logits.sum().backward()
    return sum(size for size, _ in kept.values())


def cached_bytes():
    """What the selective policy keeps beside: the outputs that it marks, of the blocks alone."""
    model, sizes = noisy_model(), []
    from torch.utils._python_dispatch import TorchDispatchMode

    from labkit.train import recompute as module

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
            out = fn(*args, **(kwargs or {}))
            if module._keep_what_is_dear(None, fn) == module.CheckpointPolicy.MUST_SAVE:
                sizes.append(sum(t.nbytes for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t)))
            return out

    with Watch(), torch.no_grad():
        logits = model(small_runs.Source().next(4, 32).ids_BS).logits
    return sum(sizes) - logits.nbytes


def test_fewer_bytes_are_kept():
    none, full, selective = (kept_bytes(policy) for policy in ("none", "full", "selective"))
    assert full < 0.5 * none
    assert full <= selective
    assert selective + cached_bytes() < 0.8 * none


class Counter(nn.Module):
    """Counts how often products and cheap operations run."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([self.Layer(self)])
        self.calls = 0

    class Layer(nn.Module):
        def __init__(self, owner):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(4, 4))
            self.owner = [owner]

        def forward(self, x):
            self.owner[0].calls += 1
            return (x @ self.weights).sin()

    def forward(self, x):
        return self.layers[0](x)


@pytest.mark.parametrize(("policy", "calls"), [("none", 1), ("full", 2), ("selective", 2)])
def test_the_forward_pass_really_runs_again(policy, calls):
    model = Counter()
    with recompute(model, policy):
        model(torch.randn(3, 4)).sum().backward()
    assert model.calls == calls


@pytest.mark.parametrize(("policy", "products"), [("none", 1), ("full", 2), ("selective", 1)])
def test_selective_does_no_product_twice(policy, products):
    from torch.utils.flop_counter import FlopCounterMode

    model, x = Counter(), torch.randn(3, 4)
    with recompute(model, policy), FlopCounterMode(display=False) as counted:
        model(x).sum().backward()
    backward = 1  # only the weights need a gradient
    assert counted.get_total_flops() == 2 * 3 * 4 * 4 * (products + backward)


@pytest.mark.parametrize(("policy", "times"), [("none", 1), ("full", 2), ("selective", 1)])
def test_our_own_kernels_are_as_dear_as_products(policy, times):
    from torch.utils._python_dispatch import TorchDispatchMode

    from labkit.kernels.experts import experts

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(2, 8, 4), torch.randn(2, 4, 4)])

        def forward(self, x):
            ids = torch.tensor([[0], [1], [1]])
            return experts(x.sin(), ids, torch.ones(3, 1), *self.weights).cos()

    class Calls(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, operator, types, arguments=(), named=None):
            self.found += operator is torch.ops.labkit.experts.default
            return operator(*arguments, **(named or {}))

    model = nn.Module()
    model.layers = nn.ModuleList([Layer()])
    model.forward = lambda x: model.layers[0](x)
    with recompute(model, policy), Calls() as calls:
        model.forward(torch.randn(3, 4)).sum().backward()
    assert calls.found == times


def test_afterwards_the_model_is_as_it_was():
    model = noisy_model()
    before = [vars(block).keys() for block in blocks_of(model)]
    with pytest.raises(RuntimeError, match="stop"), recompute(model, "full"):
        raise RuntimeError("stop")
    assert [vars(block).keys() for block in blocks_of(model)] == before
    assert all("forward" not in vars(block) for block in blocks_of(model))


def test_without_gradients_nothing_is_recomputed():
    model = Counter()
    with recompute(model, "full"), torch.no_grad():
        model(torch.randn(3, 4))
    assert model.calls == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="choose one of none, full, selective"), recompute(nn.Linear(2, 2), "half"):
        pass
    with pytest.raises(ValueError, match="no list called `layers`"), recompute(nn.Linear(2, 2), "full"):
        pass
