"""The small language model: causal, of sparse layers, and able to learn real text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.core.config import MoEConfig
from labkit.nn import MoE, WindowModel
from labkit.train import data

MOE = MoEConfig(d_model=24, d_expert=12, num_experts=6, top_k=2)


def model(**fields):
    torch.manual_seed(0)
    return WindowModel(MOE, **{"num_layers": 2, "window": 4, "d_embed": 8, **fields})


def ids(B=3, S=11):
    return torch.randint(256, (B, S), generator=torch.Generator().manual_seed(1))


def test_one_record_a_layer_in_order():
    logits_BSV, records = model()(ids(), return_routing=True)
    assert logits_BSV.shape == (3, 11, 256)
    assert [record.layer for record in records] == [0, 1]
    assert all(record.num_tokens == 33 and record.top_k == 2 for record in records)
    assert torch.equal(logits_BSV, model()(ids()))


@pytest.mark.parametrize("window", [1, 4])
def test_a_position_sees_its_window_and_nothing_else(window):
    net, text = model(window=window), ids()
    before = net(text)
    changed = text.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256
    differs_S = ((net(changed) - before).abs() > 1e-5).any(dim=2).any(dim=0)  # experts sum in another order
    assert differs_S.nonzero()[:, 0].tolist() == list(range(5, 5 + window))


def test_the_start_is_padded_and_no_sequence_sees_another():
    net, text = model(), ids()
    for row in range(3):
        torch.testing.assert_close(net(text[row : row + 1])[0], net(text)[row])


def test_every_layer_is_made_by_the_given_function():
    made = []

    def layer(config):
        made.append(config)
        return MoE(config)

    model(layer=layer, num_layers=3)
    assert made == [MOE] * 3


def test_it_learns_real_text():
    batch = data.sample(data.corpus(bytes_per_domain=20_000), num_sequences=8, sequence_length=64)
    net = model(window=8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        logits_BSV = net(batch.ids_BS[:, :-1])
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), batch.ids_BS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["num_layers", "window", "d_embed", "vocab_size"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=name):
        WindowModel(MOE, **{name: 0})


@pytest.mark.parametrize("bad", [torch.zeros(4, dtype=torch.int64), torch.zeros(2, 3)])
def test_ids_must_be_integers_of_two_dimensions(bad):
    with pytest.raises(ValueError, match="give integers"):
        model()(bad)
