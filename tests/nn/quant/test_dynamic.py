"""Two precisions in one model: the share that was asked for gets the high one, and results are those of either."""

import copy

import pytest
import tiny_models
import torch
from small import ids, ours

from labkit.nn import quantize
from labkit.nn.quant import DynamicExperts, dynamic


@torch.no_grad()
def logits(model, batch):
    return model(batch).logits


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("by", ["outliers", "margin", "random"])
def test_all_or_nothing_is_the_fixed_precision(by, share):
    model = ours()
    fixed = copy.deepcopy(model)
    quantize(fixed, "int8" if share else "nf4", rooms="experts")
    (layer,) = dynamic(model, [ids()], by=by, share=share)
    torch.testing.assert_close(logits(model, ids(3, 11)), logits(fixed, ids(3, 11)))
    assert layer.share == share


@pytest.mark.parametrize("by", ["outliers", "margin"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_that_was_asked_for(by, share):
    model, text = ours(), ids(8, 32)
    (layer,) = dynamic(model, [text], by=by, share=share)
    logits(model, text)
    assert layer.share == pytest.approx(share, abs=0.01)
    assert sum(layer.counts) == 8 * 32
    bits = [8 * (x.up.packed.nbytes + x.down.packed.nbytes) / (4 * 3 * 32 * 64) for x in (layer.low, layer.high)]
    assert layer.bits == pytest.approx(bits[0] + layer.share * (bits[1] - bits[0]))
    assert 4.5 <= bits[0] < layer.bits < bits[1] <= 9
    layer.reset()
    assert layer.counts == [0, 0]
    assert layer.share != layer.share


def test_each_token_gets_the_experts_it_was_given():
    model, text = ours(), ids(4, 16)
    (layer,) = dynamic(model, [text], by="outliers", share=0.4)
    draw = torch.Generator().manual_seed(2)
    x_TD, scores_TK = torch.randn(50, 64, generator=draw), torch.rand(50, 2, generator=draw)
    ids_TK = torch.rand(50, 4, generator=draw).argsort(1)[:, :2]
    high_T = layer.feature(x_TD, scores_TK) > layer.threshold
    assert 0 < high_T.sum() < 50
    want = torch.where(high_T[:, None], layer.high(x_TD, ids_TK, scores_TK), layer.low(x_TD, ids_TK, scores_TK))
    torch.testing.assert_close(layer(x_TD, ids_TK, scores_TK), want)
    torch.testing.assert_close(layer(x_TD, (ids_TK, scores_TK)), want)


def test_a_batch_is_of_one_precision():
    model = ours()
    (layer,) = dynamic(model, [ids(1, n) for n in range(2, 30)], per="batch", share=0.5)
    for n in range(2, 30):
        before = list(layer.counts)
        logits(model, ids(1, n))
        assert sorted(b - a for a, b in zip(before, layer.counts, strict=True)) == [0, n]
    assert min(layer.counts) > 0


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_transformers_too(family):
    model = tiny_models.build(family)
    text = tiny_models.batch().ids_BS
    want = logits(model, text)
    layers = dynamic(model, [text], by="margin", low="int8_tensor", high="int8", share=0.3)
    assert len(layers) == 3
    assert all(isinstance(layer, DynamicExperts) for layer in layers)
    assert ((logits(model, text) - want).norm() / want.norm()).item() < 0.2
    assert layers[0].share == pytest.approx(0.3, abs=0.05)


def test_no_tokens():
    (layer,) = dynamic(ours(), [ids()])
    none = torch.zeros(0, 2)
    assert layer(torch.zeros(0, 64), none.long(), none).shape == (0, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "luck"}, "by is 'luck'"),
        ({"per": "sequence"}, "per 'sequence'"),
        ({"share": 1.5}, "share is 1.5"),
        ({"low": "bf16"}, "bf16 casts a whole model"),
        ({"batches": []}, "no batch of text"),
        ({"high": "int9"}, "scheme is 'int9'"),
    ],
)
def test_refusals_change_nothing(arguments, words):
    model = ours()
    names = model.state_dict().keys()
    with pytest.raises(ValueError, match=words):
        dynamic(model, **{"batches": [ids()], **arguments})
    assert model.state_dict().keys() == names
