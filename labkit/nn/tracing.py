"""Any mixture-of-experts model, read while it runs: hooks on its routers write down what they decide.

Two kinds of routers are understood: our own, which answer a `Routing`, and those of transformers (5.15 and newer),
which answer `(logits [T, E], scores [T, K], ids [T, K])`: Mixtral, OLMoE, Qwen, DeepSeek, GPT-OSS, GLM, Granite, Gemma
and some thirty more (Jamba's in 5.23, in 5.17 not yet). The model is left as it was: weights, mode, hooks, random
numbers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.core.routing import Routing
from labkit.kernels.reference import widen
from labkit.nn.ablate import without
from labkit.nn.labelled import Labelled, labelled

__all__ = ["Labelled", "trace"]

Pair = tuple[int, int]
_ROUTER = re.compile(r"(router|gate)$", re.IGNORECASE)


@torch.no_grad()
def trace(
    model: nn.Module,
    batch: Any,
    *,
    tokenizer: Any = None,
    ablate: Pair | Sequence[Pair] | None = None,
    batch_size: int = 8,
) -> tuple[Routing, ...]:
    """What every router of a model decides for a batch of labelled text: one record a sparse layer, in order.

    Args:
        model: a causal language model whose routers are one of the two kinds above; called with token ids, and with an
            attention mask if it takes one. It is run in evaluation mode, without gradients, where its weights are.
        batch: `Labelled` token ids, anything with `ids_BS` and `domains` (`train.data.Batch`), token ids [B, S], or
            texts by domain (see `nn.labelled.labelled`).
        tokenizer: for texts, and to name tokens that come as ids.
        ablate: `(layer, expert)`, or several: experts that are taken out for this run. Their logit is −∞ before the
            router chooses, so each of their tokens goes to its next best expert, and scores that are renormalised are
            so without them.
        batch_size: sequences at a time.

    Returns records on the CPU, without gradients and without padding: logits as they leave the linear layer (float32
    or wider), experts in order of their score, the score that the model applies; `layer`, the number in the model;
    `tokens` and `domains` where they are known; `sequence_T`; and `loss_T`, the cross-entropy of the next token in
    nats, where the model answers logits as wide as its `vocab_size`.

    Raises ValueError for a model without such routers (saying what was looked for), a batch that cannot be read or is
    longer than the model's positions, an expert that is not there, and one that the router chose though it was taken
    out (a router that does not decide by scores, or has no other expert in reach).

    >>> from labkit.core.config import MoEConfig
    >>> from labkit.nn import WindowModel
    >>> model = WindowModel(MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2), num_layers=2)
    >>> records = trace(model, Labelled(torch.tensor([[7, 8, 9]]), ("numbers",)))
    >>> [r.layer for r in records], records[0].domains
    ([0, 1], ('numbers', 'numbers', 'numbers'))

    A model from a hub takes the same call:

    >>> from transformers import AutoModelForCausalLM, AutoTokenizer  # doctest: +SKIP
    >>> name = "allenai/OLMoE-1B-7B-0924"  # doctest: +SKIP
    >>> model = AutoModelForCausalLM.from_pretrained(name)  # doctest: +SKIP
    >>> tokenizer = AutoTokenizer.from_pretrained(name)  # doctest: +SKIP
    >>> trace(model, {"code": ["x = 1"], "english": ["It rains."]}, tokenizer=tokenizer)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"trace got {type(model).__name__}; give the model itself, a torch.nn.Module")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"trace: batch_size is {batch_size!r}; give a whole number of 1 or more")
    whole, pairs = labelled(batch, tokenizer), _pairs(ablate)
    _check_model(model, whole)
    parts, first = [], 0
    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(model))
        heard = stack.enter_context(_listening(model))
        _take_out(_survey(model, heard, whole), pairs, stack)
        for part in whole.parts(batch_size):
            heard.decisions.clear()
            losses_BS = _losses(_call(model, part), part, _vocabulary(model))
            parts.append([_record(d, part, first, losses_BS) for d in heard.decisions])
            first += len(part.ids_BS)
    records = tuple(_joined(layer) for layer in zip(*parts, strict=True))
    _check_gone(records, pairs)
    return records


@dataclass(frozen=True, eq=False)
class _Decision:
    """What one router answered in one call."""

    layer: int | None
    router: nn.Module
    logits_TE: Tensor
    topk_ids_TK: Tensor
    topk_scores_TK: Tensor


@dataclass(frozen=True, eq=False)
class _Heard:
    """What the hooks have heard: decisions in the order in which they were made, and answers that were none."""

    decisions: list[_Decision] = field(default_factory=list)
    products: dict[str, Tensor] = field(default_factory=dict)  # of the linear layers inside routers
    strange: dict[str, str] = field(default_factory=dict)


def _pairs(ablate: Any) -> tuple[Pair, ...]:
    if ablate is None:
        return ()
    given = tuple(ablate) if isinstance(ablate, (tuple, list)) else (ablate,)
    pairs = (given,) if len(given) == 2 and all(isinstance(part, int) for part in given) else given
    if not all(isinstance(p, (tuple, list)) and len(p) == 2 and all(isinstance(n, int) for n in p) for p in pairs):
        raise ValueError(f"trace: ablate is {ablate!r}; give (layer, expert), or a sequence of such pairs")
    return tuple((layer, expert) for layer, expert in pairs)


def _check_model(model: nn.Module, batch: Labelled) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} has an encoder and a decoder; trace reads models that have one stack")
    longest, limit = batch.ids_BS.shape[1], getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit:
        raise ValueError(f"a sequence has {longest} tokens, the model takes {limit}; cut the text into shorter ones")
    vocabulary, real = _vocabulary(model), batch.ids_BS[batch.mask_BS]
    for token in (int(real.min()), int(real.max())):
        if token < 0 or (vocabulary is not None and token >= vocabulary):
            known = "every vocabulary" if vocabulary is None else f"the model's vocabulary of {vocabulary}"
            raise ValueError(f"token id {token} is outside {known}; is it of this model's tokenizer, or padding?")


def _vocabulary(model: nn.Module) -> int | None:
    """V, where the model or its configuration says so."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(config, "vocab_size", getattr(model, "vocab_size", None))
    return size if isinstance(size, int) else None


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode and the random states as before."""
    modes = {module: module.training for module in model.modules()}
    own = [v for module in modes for v in vars(module).values() if isinstance(v, torch.Generator)]
    states = [generator.get_state() for generator in own]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)


@contextmanager
def _listening(model: nn.Module) -> Iterator[_Heard]:
    heard = _Heard()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if _ROUTER.search(name) or _ROUTER.search(type(module).__name__):
                hook = module.register_forward_hook(
                    lambda module, given, answer, name=name: _hear(heard, name, module, answer)
                )
                stack.callback(hook.remove)
                for part in module.modules():
                    if part is not module and isinstance(part, nn.Linear):
                        hook = part.register_forward_hook(lambda _, x, y, name=name: heard.products.update({name: y}))
                        stack.callback(hook.remove)
        yield heard


def _hear(heard: _Heard, name: str, module: nn.Module, answer: Any) -> None:
    number = re.search(r"\.(\d+)\.", f".{name}.")
    layer = int(number[1]) if number else None
    read = _read(answer, heard.products.pop(name, None))
    if isinstance(answer, Routing):
        values = (answer.logits_TE, answer.topk_ids_TK, answer.topk_scores_TK)
        layer = layer if answer.layer is None else answer.layer
    elif read is not None:
        values = read
    else:  # often no router at all, such as the gate of a shared expert
        heard.strange[name] = type(module).__name__
        return
    heard.decisions.append(_Decision(layer, module, *(value.detach() for value in values)))


def _read(answer: Any, product: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
    """Logits, ids and scores out of what a router of transformers answers; None if that is something else.

    The answer is (logits [T, E], scores [T, K], ids [T, K]), or the other way round (Granite's in 5.17). Gemma's has
    probabilities in place of logits: those are the `product`, what the linear layer inside the router gave.
    """
    if not (isinstance(answer, tuple) and len(answer) == 3 and all(isinstance(a, Tensor) for a in answer)):
        return None
    logits, scores, ids = answer if answer[0].is_floating_point() else answer[::-1]
    kinds = logits.is_floating_point() and scores.is_floating_point() and not ids.is_floating_point()
    if not (kinds and logits.ndim == ids.ndim == 2 and scores.shape == ids.shape and len(logits) == len(ids)):
        return None
    if product is not None and product.numel() == logits.numel():
        product = product.reshape(logits.shape)
        if torch.allclose(product.float().softmax(-1), logits.float(), atol=1e-4):
            logits = product
    return logits, ids.long(), scores


def _survey(model: nn.Module, heard: _Heard, batch: Labelled) -> list[_Decision]:
    """Which routers there are, from one token; ValueError if there is none that can be read."""
    one = batch.ids_BS[batch.mask_BS][:1][None]
    _call(model, Labelled(one))
    found = list(heard.decisions)
    if not found:
        strange = "; ".join(f"{name} ({kind})" for name, kind in list(heard.strange.items())[:4])
        raise ValueError(
            f"{type(model).__name__} has no router that trace can read. It looks for modules named …router or …gate "
            "that answer (logits [T, E], scores [T, K], ids [T, K]), as those of transformers do, or a labkit Routing; "
            f"{'these answer something else: ' + strange if strange else 'no module has such a name'}"
        )
    return found


def _take_out(found: Sequence[_Decision], pairs: Sequence[Pair], stack: ExitStack) -> None:
    for layer in sorted({layer for layer, _ in pairs}):
        routers = [d for d in found if d.layer == layer]
        if not routers:
            layers = ", ".join(str(d.layer) for d in found)
            raise ValueError(f"trace: ablate names layer {layer}; the sparse layers are {layers}")
        E, experts = routers[0].logits_TE.shape[1], sorted({expert for at, expert in pairs if at == layer})
        if experts[0] < 0 or experts[-1] >= E:
            raise ValueError(f"trace: ablate names experts {experts} of layer {layer}; give numbers from 0 to {E - 1}")
        for decision in routers:
            stack.enter_context(without(decision.router, experts, E))


def _check_gone(records: Sequence[Routing], pairs: Sequence[Pair]) -> None:
    for layer, expert in pairs:
        for r in records:
            if r.layer == layer and int(r.tokens_per_expert_E[expert]):
                raise ValueError(
                    f"trace: the router of layer {layer} chose expert {expert} although it was taken out; it does not "
                    "decide by its logits, or has no other expert in reach"
                )


def _call(model: nn.Module, part: Labelled) -> Any:
    """The model's answer to one batch, with what its forward takes of mask and positions."""
    takes = inspect.signature(model.forward).parameters
    device = next((p.device for p in model.parameters()), part.ids_BS.device)
    mask_BS = part.mask_BS.to(device)
    ids_BS = part.ids_BS.to(device).masked_fill(~mask_BS, 0)  # whatever stands there, even −100
    extra: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    if not bool(mask_BS.all()):
        starts_late = bool((~mask_BS[:, 0]).any())
        if "attention_mask" in takes:
            extra["attention_mask"] = mask_BS.long()
        elif starts_late:
            raise ValueError(
                f"{type(model).__name__} takes no attention mask, and a sequence begins with padding; pad on the right"
            )
        if starts_late and "position_ids" in takes:
            extra["position_ids"] = (mask_BS.long().cumsum(1) - 1).clamp_min(0)
    return model(ids_BS, **extra)


def _losses(answer: Any, part: Labelled, vocabulary: int | None) -> Tensor | None:
    """The next token's cross-entropy at each position, NaN where none follows; [B, S]. None without logits of V."""
    logits_BSV = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
    if vocabulary is None or logits_BSV is None or logits_BSV.shape != (*part.ids_BS.shape, vocabulary):
        return None
    losses_BS = torch.full(part.ids_BS.shape, float("nan"))
    for row, (ids_S, mask_S) in enumerate(zip(part.ids_BS, part.mask_BS, strict=True)):
        real = mask_S.nonzero()[:, 0]
        at, after = real[:-1], real[1:]
        logits_TV = widen(logits_BSV[row, at.to(logits_BSV.device)])
        losses_BS[row, at] = (
            F.cross_entropy(logits_TV, ids_S[after].to(logits_TV.device), reduction="none").cpu().float()
        )
    return losses_BS


def _record(d: _Decision, part: Labelled, first: int, losses_BS: Tensor | None) -> Routing:
    B, S = part.ids_BS.shape
    if len(d.logits_TE) != B * S:
        raise ValueError(
            f"the router of layer {d.layer} saw {len(d.logits_TE)} tokens of a batch of {B} × {S}; trace reads models "
            "that route every position once"
        )
    order_TK = d.topk_scores_TK.argsort(dim=1, descending=True, stable=True)
    ids_TK, scores_TK = (values.gather(1, order_TK) for values in (d.topk_ids_TK, d.topk_scores_TK))
    domains = None if part.domains is None else tuple(domain for domain in part.domains for _ in range(S))
    whole = Routing.of(
        *(t.cpu() for t in (widen(d.logits_TE), ids_TK, widen(scores_TK))), layer=d.layer, tokens=part.tokens,
        domains=domains, sequence_T=torch.arange(first, first + B).repeat_interleave(S),
        loss_T=None if losses_BS is None else losses_BS.flatten(),
    )  # fmt: skip
    return whole.keep(part.mask_BS.cpu())


def _joined(records: Sequence[Routing]) -> Routing:
    """One layer's records of several batches as one."""
    one = records[0]

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(r, name) for r in records])

    return Routing.of(
        cat("logits_TE"), cat("topk_ids_TK"), cat("topk_scores_TK"), layer=one.layer, sequence_T=cat("sequence_T"),
        tokens=None if one.tokens is None else tuple(chain.from_iterable(r.tokens for r in records)),
        domains=None if one.domains is None else tuple(chain.from_iterable(r.domains for r in records)),
        loss_T=None if one.loss_T is None else cat("loss_T"),
    )  # fmt: skip
