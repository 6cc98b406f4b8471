"""Lab 06's references are the package's model and transformers'; its checks want a refusal to name the tensor."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from labkit.core import presets
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import model_params
from labkit.course import labs
from labkit.course.given import Rotary
from labkit.course.labs import _06_cases as cases
from labkit.course.labs._06_naming import names_in
from labkit.nn import Attention, Block, KVCache, Transformer
from labkit.nn.rope import rope_tables
from labkit.nn.sampling import Sampling, filtered

EXERCISES = {exercise.name: exercise for exercise in labs.lab("06").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
CONFIG = ModelConfig(
    "small", 40, 3, 16, num_heads=4, num_kv_heads=2, head_dim=4, qk_norm="head", num_dense_layers=1, d_dense=10,
    moe=MoEConfig(d_model=16, d_expert=6, num_experts=12, top_k=3),
)  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        value.copy_(0.3 * torch.randn(value.shape, generator=generator) + ("norm" in name))
    return model.eval()


# ------------------------------------------------------------------------------------------------- block, placement


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_the_block_is_the_models(layer):
    block, x_BSD = drawn(Block(CONFIG, layer)), normal(1, 2, 7, 16)
    transformer = Transformer(CONFIG)
    positions = transformer._positions(torch.zeros(2, 7, dtype=torch.int64), None, None, 0)
    wanted, _ = block(x_BSD, positions)

    def attend(x):
        return block.attention(x, positions.cos, positions.sin, positions.masks[False])

    got = PART["block"](x_BSD, block.norm_attention, attend, block.norm_ffn, block.ffn)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3"])
def test_placement_counts_what_the_package_counts(name):
    model, moe = presets.preset(name), presets.preset(name).moe
    sizes = (model.d_model, model.d_dense, moe.d_expert, moe.num_experts, moe.top_k, moe.num_shared_experts)
    sparse, total, active = PART["placement"](model.num_layers, model.num_dense_layers, 1, *sizes)
    counted = model_params(model)
    assert tuple(sparse) == model.sparse_layers
    assert total == counted.dense + counted.router + counted.routed_experts + counted.shared_experts
    assert total - active == counted.total - counted.active


# -------------------------------------------------------------------------------------------------------- cached step


@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("pads", [(0, 0, 0), (3, 0, 1)])
def test_cached_steps_are_the_full_forward(H, G, pads):
    S, d, rotate = 9, 8, Rotary(100.0)
    q, k, v = (normal(i, 3, heads, S, d) for i, heads in enumerate((H, G, G)))
    real = torch.arange(S) >= torch.tensor(pads)[:, None]
    at = (real.cumsum(1) - 1).clamp_min(0)
    mask = (torch.ones(S, S).tril().bool() & real[:, None] | torch.eye(S).bool())[:, None]
    full = [t.repeat_interleave(H // t.shape[1], dim=1) for t in (rotate(q, at), rotate(k, at), v)]
    whole = F.scaled_dot_product_attention(*full, attn_mask=mask)
    start = max(pads) + 1
    keys, values = rotate(k, at)[:, :, :start], v[:, :, :start]
    for t in range(start, S):
        new = (x[:, :, t : t + 1] for x in (q, k, v))
        out, keys, values = PART["cached_step"](*new, keys, values, real[:, :t], rotate)
        torch.testing.assert_close(out[:, :, 0], whole[:, :, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(keys, rotate(k, at))


@torch.no_grad()
def test_cached_steps_are_the_packages_attention():
    config = CONFIG.replace(qk_norm="none")
    layer, x = drawn(Attention(config, 0)), normal(2, 2, 6, 16)
    cache = KVCache(config, 2, 6)
    rotate = Rotary(config.rope_theta)
    keys = values = torch.zeros(2, 2, 0, 4)
    for t in range(6):
        one = x[:, t : t + 1]
        cos, sin = rope_tables(config, torch.full((2, 1), t), torch.float32)
        wanted = layer(one, cos, sin, None, cache)
        cache.advance(1)
        new = (part(one).view(2, 1, -1, 4).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
        out, keys, values = PART["cached_step"](*new, keys, values, torch.ones(2, t, dtype=torch.bool), rotate)
        torch.testing.assert_close(layer.output(out.transpose(1, 2).flatten(2)), wanted, rtol=1e-5, atol=1e-5)
    assert cache.reads == sum(range(6))


# ----------------------------------------------------------------------------------------------------------- name map


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab06")
    model = drawn(Transformer(CONFIG))
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


def test_the_map_reads_what_the_package_writes(saved):
    model, file = saved
    ours = PART["name_map"](file, cases.RENAMES, 3, 1, 12)
    assert ours.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(ours[name], value), name


def test_every_missing_tensor_is_named(saved):
    _, file = saved
    for name in file:
        with pytest.raises(ValueError, match="missing") as refusal:
            PART["name_map"]({n: t for n, t in file.items() if n != name}, cases.RENAMES, 3, 1, 12)
        assert names_in(str(refusal.value)) == {name}


def renamed(change):
    """The reference with another message."""

    def name_map(*args):
        try:
            return PART["name_map"](*args)
        except ValueError as error:
            raise ValueError(change(str(error))) from None

    return name_map


def test_a_refusal_may_say_it_in_other_words_if_it_names_the_tensor():
    exercise = EXERCISES["name_map"]
    assert exercise.test(renamed(lambda said: f"cannot read this file: '{said.split()[-1]}', {said}!")).passed
    for change in (lambda said: "the file does not fit", lambda said: said.replace("model.", "")):
        verdict = exercise.test(renamed(change))
        assert (verdict.status, verdict.diagnosis) == ("failed", "unnamed")


def test_a_refusal_that_names_another_tensor_is_unnamed():
    wrong = renamed(lambda said: "model.layers.0.mlp.gate.weight is wrong")
    assert EXERCISES["name_map"].test(wrong).diagnosis == "unnamed"


# ------------------------------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize("how", [(1.0, 0, 1.0), (0.6, 7, 1.0), (1.3, 0, 0.8), (0.9, 20, 0.5), (2.0, 3, 0.99)])
@pytest.mark.parametrize("seed", range(4))
def test_sampling_is_the_packages(how, seed):
    logits_BV = 2 * normal(seed, 5, 37)
    wanted = filtered(logits_BV, Sampling(True, *how)).softmax(-1)
    torch.testing.assert_close(PART["sample"](logits_BV, *how), wanted)


def test_the_nucleus_is_the_smallest_set_that_holds_p():
    chances_BV = normal(3, 50, 30).softmax(-1)
    kept_BV = PART["sample"](chances_BV.log(), top_p=0.7) > 0
    held_B = (chances_BV * kept_BV).sum(1)
    least_B = chances_BV.masked_fill(~kept_BV, math.inf).amin(1)
    assert bool((held_B >= 0.7).all())
    assert bool((held_B - least_B < 0.7).all())


# ----------------------------------------------------------------------------------------- the guide's call, mended


@torch.no_grad()
def test_a_padded_batch_answers_as_each_prompt_alone_only_with_its_mask(saved):
    model, _ = saved
    rows = [torch.randint(40, (1, length), generator=torch.Generator().manual_seed(length)) for length in (3, 9, 6)]
    ids = torch.cat([F.pad(row, (9 - row.shape[1], 0)) for row in rows])
    mask = torch.stack([torch.arange(9) >= 9 - row.shape[1] for row in rows]).long()
    alone = torch.cat([model.generate(row, max_new_tokens=8)[:, -8:] for row in rows])
    assert torch.equal(model.generate(ids, mask, max_new_tokens=8)[:, -8:], alone)
    careless = model.generate(ids, max_new_tokens=8)[:, -8:]
    assert (careless == alone).all(1).tolist() == [False, True, False]


# --------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12, 13)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("block", "post_norm"),
        ("placement", "every_from_zero"),
        ("placement", "shared_not_active"),
        ("cached_step", "position_counts_padding"),
        ("cached_step", "heads_tiled"),
        ("name_map", "sorted_as_text"),
        ("name_map", "up_first"),
        ("sample", "p_before_k"),
        ("sample", "ties_cut"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_no_case_needs_what_a_graders_sandbox_hides():
    for exercise in EXERCISES.values():
        assert b"course.labs" not in pickle.dumps(exercise.inputs((0,)))


def test_no_case_of_this_lab_is_dropped_for_another_that_asks_for_gradients():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            found = exercise.inputs((seed,))
            assert [c.label for c in found] == [c.label for c in exercise.cases(seed)]
