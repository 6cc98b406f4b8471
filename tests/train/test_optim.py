"""Groups, AdamW and Muon: against torch's own, matrix by matrix, and as one object that can be saved."""

from __future__ import annotations

import copy

import pytest
import small_runs
import torch
from torch import nn

from labkit.train import optim
from labkit.train.muon import Muon, orthogonalise


def test_vectors_do_not_decay_and_every_parameter_has_one_group():
    moe = small_runs.model_config().moe.replace(router_bias=True, expert_bias=True)
    model = small_runs.model(qk_norm="head", attention_bias=True, attention_sinks=True, moe=moe)
    decayed, rest = optim.groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for p in [*decayed["params"], *rest["params"]]} == set(names)
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    for p in decayed["params"]:
        assert names[id(p)].endswith(("weight", "weight_ED", "gate_up_E2FD", "down_EDF", "gate_up_2FD", "down_DF"))
        assert "norm" not in names[id(p)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert not any("expert_bias_E" in name for name in names.values())


def test_a_tied_matrix_is_moved_once():
    model = small_runs.model(tie_embeddings=True)
    for name in optim.OPTIMIZERS:
        groups = optim.build_optimizer(model, name, lr=0.1).param_groups
        held = [id(p) for group in groups for p in group["params"]]
        assert len(held) == len(set(held)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = small_runs.model()
    model.embed.weight.requires_grad_(False)
    held = [p for group in optim.build_optimizer(model, "muon", lr=0.1).param_groups for p in group["params"]]
    assert all(p is not model.embed.weight for p in held)


def test_muon_moves_the_matrices_of_blocks_only():
    model = small_runs.model(num_mtp_layers=1)
    optimizer = optim.build_optimizer(model, "muon", lr=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    moved = {names[id(p)] for group in optimizer.muon.param_groups for p in group["params"]}
    left = set(names.values()) - moved
    ffn = {"layers.1.ffn.experts.gate_up_E2FD", "layers.1.ffn.experts.down_EDF", "layers.1.ffn.shared.down_DF"}
    assert ffn | {"layers.0.ffn.gate_up_2FD", "layers.0.attention.query.weight", "mtp.0.project.weight"} <= moved
    assert {"embed.weight", "head.weight", "layers.1.ffn.router.weight_ED", "norm.weight"} <= left
    parts = {names[id(p)]: g["parts"] for g in optimizer.muon.param_groups for p in g["params"]}
    assert {name for name, n in parts.items() if n == 2} == {name for name in moved if "gate_up" in name}


def test_newton_schulz_brings_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 20, 12), (3, 12, 20), (2, 2, 16, 16)):
        matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
        made = u.mT @ orthogonalise(matrices) @ vh.mT  # the same singular vectors: nothing off the diagonal
        torch.testing.assert_close(made, made.diagonal(dim1=-2, dim2=-1).diag_embed(), atol=1e-9, rtol=0)
        share = values / values.square().sum(-1, keepdim=True).sqrt()
        big = made.diagonal(dim1=-2, dim2=-1)[share > 0.01]
        assert len(big) > 0.9 * share.numel()
        assert ((big > 0.65) & (big < 1.25)).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_muon_equals_torch_on_matrices(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # theirs in float32 too, to compare digits
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(shape) / 3) for _ in range(2))
    a = Muon([ours], lr=0.02, weight_decay=0.3, momentum=0.9)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(a.state[ours]["momentum_buffer"], b.state[theirs]["momentum_buffer"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * (ours - 1 / 3).abs().max().item())


def test_products_in_bfloat16_are_close_to_those_in_float32():
    matrices = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(4))
    wide, narrow = orthogonalise(matrices), orthogonalise(matrices, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert (wide - narrow.float()).norm() < 0.03 * wide.norm()


def test_a_stack_is_its_matrices_one_by_one_and_gate_and_up_are_apart():
    generator = torch.Generator().manual_seed(2)
    E, F, D = 3, 4, 6
    fused = nn.Parameter(torch.randn(E, 2 * F, D, generator=generator))
    fused.grad = torch.randn(E, 2 * F, D, generator=generator)
    alone = [nn.Parameter(m.clone()) for m in fused.detach().unflatten(1, (2, F)).flatten(0, 1)]
    for p, grad in zip(alone, fused.grad.unflatten(1, (2, F)).flatten(0, 1), strict=True):
        p.grad = grad.clone()
    Muon([{"params": [fused], "parts": 2}], lr=0.1).step()
    Muon(alone, lr=0.1).step()
    torch.testing.assert_close(fused.detach(), torch.stack([p.detach() for p in alone]).reshape(E, 2 * F, D))


def test_the_update_has_the_size_that_moonlight_wants():
    generator = torch.Generator().manual_seed(3)
    for rows, columns in ((64, 16), (16, 64)):
        p = nn.Parameter(torch.zeros(rows, columns))
        p.grad = torch.randn(rows, columns, generator=generator)
        Muon([p], lr=1.0, weight_decay=0.0).step()
        assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_found_inf_leaves_everything_as_it_is(name):
    model = small_runs.model()
    optimizer = optim.build_optimizer(model, name, lr=0.1)

    def step(bad: bool) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan")) if bad else torch.ones_like(p)
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()

    step(bad=False)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    step(bad=True)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    step(bad=False)
    assert not torch.equal(model.embed.weight, before[0]["embed.weight"])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_one_state_dict_holds_all_and_goes_on(name):
    def gradients(model, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)

    first, second = small_runs.model(), small_runs.model()
    a, b = (optim.build_optimizer(m, name, lr=0.01) for m in (first, second))
    gradients(first, 0)
    a.step()
    second.load_state_dict(first.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert len(a.state) == len(list(first.parameters()))
    for model, optimizer in ((first, a), (second, b)):
        for group in optimizer.param_groups:
            group["lr"] = 0.003  # as a schedule does; both halves must see it
        gradients(model, 1)
        optimizer.step()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_adamw_is_torch_adamw_fused():
    optimizer = optim.build_optimizer(small_runs.model(), lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    assert type(optimizer) is torch.optim.AdamW
    assert all(g["fused"] and g["betas"] == (0.8, 0.9) and g["eps"] == 1e-6 for g in optimizer.param_groups)


def test_a_closure_is_called():
    for name in optim.OPTIMIZERS:
        model = small_runs.model()
        optimizer = optim.build_optimizer(model, name, lr=0.1)
        assert optimizer.step(lambda model=model: sum(p.sum() for p in model.parameters())) is not None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="choose one of adamw, muon"):
        optim.build_optimizer(small_runs.model(), "sgd", lr=0.1)
    with pytest.raises(ValueError, match="give it to AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="a momentum below 1"):
        Muon([nn.Parameter(torch.zeros(3, 3))], momentum=1.0)
    with pytest.raises(ValueError, match="no matrix inside its blocks"):
        optim.build_optimizer(nn.Embedding(3, 4), "muon", lr=0.1)
    with pytest.raises(ValueError, match="give matrices"):
        orthogonalise(torch.zeros(3))
