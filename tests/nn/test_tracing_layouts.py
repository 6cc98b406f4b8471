"""Routers whose answer is laid out in another way: what is read is what was decided."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import V, batch, dense, experts, given_to, seeded
from torch import nn

from labkit.nn.tracing import trace


def gemma() -> nn.Module:
    """A tiny Gemma 4, whose routers answer probabilities, not logits."""
    config = transformers.Gemma4TextConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, global_head_dim=8, vocab_size=V, vocab_size_per_layer_input=V, max_position_embeddings=32,
        enable_moe_block=True, num_experts=8, top_k_experts=3, moe_intermediate_size=16, hidden_size_per_layer_input=0,
        layer_types=["full_attention"] * 2, num_kv_shared_layers=0, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return seeded(transformers.AutoModelForCausalLM.from_config(config).float())


class Reversed(nn.Module):
    """A model whose router answers ids first and logits last, as Granite's did."""

    class Router(nn.Linear):
        def forward(self, x):
            logits_TE = super().forward(x.flatten(0, 1))
            values_TK, ids_TK = logits_TE.topk(2)
            return ids_TK, values_TK.softmax(-1), logits_TE

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(V, 8), self.Router(8, 6)

    def forward(self, ids_BS):
        x = self.embed(ids_BS)
        return x, self.router(x)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="this transformers has no Gemma 4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_no_logits(dtype) -> None:
    model, text = gemma().to(dtype), batch()
    linears = [m.proj for m in model.modules() if type(m).__name__ == "Gemma4TextRouter"]
    products = []
    hooks = [m.register_forward_hook(lambda _, x, y: products.append(y)) for m in linears]
    given = given_to(experts(model), lambda: model(text.ids_BS))
    for hook in hooks:
        hook.remove()
    records = trace(model, text)
    assert len(records) == len(products) == len(given) == 2
    for r, product, (_, ids_TK, scores_TK) in zip(records, products, given, strict=True):
        assert torch.equal(r.logits_TE, product.flatten(0, -2).float())
        assert torch.equal(dense(r.topk_ids_TK, r.topk_scores_TK), dense(ids_TK, scores_TK))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="this transformers has no Gemma 4")
def test_an_expert_is_taken_out_of_a_router_that_answers_probabilities() -> None:
    model, text = gemma(), batch()
    whole, without = trace(model, text)[0], trace(model, text, ablate=(0, 5))[0]
    assert whole.tokens_per_expert_E[5] > 0
    assert without.tokens_per_expert_E[5] == 0
    assert without.logits_TE[:, 5].isneginf().all()
    others = [e for e in range(8) if e != 5]
    assert torch.equal(without.logits_TE[:, others], whole.logits_TE[:, others])


def test_ids_may_come_first() -> None:
    model, text = seeded(Reversed()), batch()
    with torch.no_grad():
        _, (ids_TK, scores_TK, logits_TE) = model(text.ids_BS)
    (r,) = trace(model, text)
    assert torch.equal(r.logits_TE, logits_TE)
    assert torch.equal(r.topk_ids_TK, ids_TK)
    assert torch.equal(r.topk_scores_TK, scores_TK)


class Hidden(Reversed):
    """A model without a head: its answer is hidden states."""

    def __init__(self, width: int, vocab_size: int | None) -> None:
        super().__init__()
        self.wide = nn.Linear(8, width)
        if vocab_size is not None:
            self.vocab_size = vocab_size

    def forward(self, ids_BS):
        return self.wide(super().forward(ids_BS)[0])


@pytest.mark.parametrize(("width", "vocab_size"), [(8, V), (V, None), (V + 8, V), (V, V)])
def test_hidden_states_are_no_logits(width: int, vocab_size: int | None) -> None:
    (r,) = trace(seeded(Hidden(width, vocab_size)), batch())
    assert (r.loss_T is not None) == (width == vocab_size)
