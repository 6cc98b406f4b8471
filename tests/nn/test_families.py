"""All six families, drawn at random: logits, gradients, padding, caches and greedy tokens equal transformers'."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import FAMILIES, models, off, saved, theirs

from labkit.core.config import ModelConfig
from labkit.nn import KVCache, Transformer
from labkit.nn.tensor_names import pieces as pieces_of

RELATIVE = 1e-5
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def prompt(config: ModelConfig, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))


def left_padding() -> torch.Tensor:
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    return mask


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_logits_and_gradients(family: str) -> None:
    @EXAMPLES
    @given(models(family), st.integers(0, 9))
    def same(config: ModelConfig, seed: int) -> None:
        wanted = theirs(config, family, seed)
        with tempfile.TemporaryDirectory() as folder:
            ours = Transformer.from_pretrained(saved(wanted, Path(folder)))
        assert ours.config.replace(name="") == config.replace(name="")
        ids = prompt(config, seed)
        target = wanted(ids, labels=ids)
        output = ours(ids, labels=ids)
        assert off(output.logits, target.logits) < RELATIVE
        assert output.loss.item() == pytest.approx(target.loss.item(), rel=RELATIVE)
        output.loss.backward()
        target.loss.backward()
        compare_gradients(ours, wanted, family)
        mask = left_padding()
        real = mask.bool()
        assert off(ours(ids, mask).logits[real], wanted(ids, attention_mask=mask).logits[real]) < RELATIVE

    same()


def compare_gradients(ours: Transformer, wanted: torch.nn.Module, family: str) -> None:
    """Ours, in the layout that transformers keeps in memory (experts fused, but for GPT-OSS gate before up)."""
    grads = {name: p.grad for name, p in wanted.named_parameters()}
    for name, parameter in ours.named_parameters():
        for part, found in in_memory(name, parameter.grad, ours.config, family):
            target = grads.pop(found)
            # a sigmoid router with one expert, or one expert of one, has no gradient but rounding
            if max(target.norm(), part.norm()) > 1e-7:
                assert off(part, target) < RELATIVE, (name, off(part, target))
    assert not {name for name, grad in grads.items() if grad is not None and grad.norm() > 0}


def in_memory(name: str, grad: torch.Tensor, config: ModelConfig, family: str):
    if ".experts." in name and family != "gpt_oss":
        leaf = {"gate_up_E2FD": "gate_up_proj", "down_EDF": "down_proj"}[name.rpartition(".")[2]]
        yield grad, f"model.layers.{name.split('.')[1]}.mlp.experts.{leaf}"
        return
    for piece in pieces_of(name, grad.shape, config, family):
        part = grad[piece.where] if piece.where else grad
        yield piece.theirs(part), piece.name.replace("block_sparse_moe", "mlp")


def test_caches_and_greedy_tokens(family: str) -> None:
    @settings(EXAMPLES, max_examples=15)
    @given(models(family), st.integers(0, 9))
    def same(config: ModelConfig, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        ours = from_ours(config, family, seed)
        ids, mask = prompt(config, seed), left_padding()
        whole = ours(ids, mask).logits
        cache = KVCache(config, 2, 9)
        parts = [ours(ids[:, a:b], mask[:, :b], cache=cache).logits for a, b in ((0, 5), (5, 6), (6, 7), (7, 9))]
        real = mask.bool()
        assert off(torch.cat(parts, dim=1)[real], whole[real]) < RELATIVE
        assert cache.reads == config.num_layers * (5 + 6 + 7)
        with tempfile.TemporaryDirectory() as folder:
            wanted = AutoModelForCausalLM.from_pretrained(
                ours.save_pretrained(folder), experts_implementation="eager"
            ).eval()
        tokens = ours.generate(ids, mask, max_new_tokens=8)
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(tokens, wanted.generate(ids, attention_mask=mask, **options))

    same()


def from_ours(config: ModelConfig, family: str, seed: int) -> Transformer:
    """Our model with the random weights of theirs, through a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return Transformer.from_pretrained(saved(theirs(config, family, seed), Path(folder)))
