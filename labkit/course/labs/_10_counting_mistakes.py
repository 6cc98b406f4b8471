"""Lab 10: mistakes as a learner makes them in counting bytes: what autograd keeps, and a checkpointed peak."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------------- saved_bytes

Call = Callable[..., Tensor]


def _saved(call: Call, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*inputs)
    return found


def _where(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def saved_views_twice(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum(tensor.untyped_storage().nbytes() for tensor in _saved(call, inputs) if _where(tensor) not in given)


def saved_each_view(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum(_bytes(tensor) for tensor in _saved(call, inputs) if _where(tensor) not in given)


def saved_last_view(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum({_where(t): _bytes(t) for t in _saved(call, inputs) if _where(t) not in given}.values())


def saved_inputs_too(call: Call, *inputs: Tensor) -> int:
    return sum({_where(t): t.untyped_storage().nbytes() for t in _saved(call, inputs)}.values())


def saved_same_objects_only(call: Call, *inputs: Tensor) -> int:
    found = [t for t in _saved(call, inputs) if not any(t is tensor for tensor in inputs)]
    return sum({_where(t): t.untyped_storage().nbytes() for t in found}.values())


def saved_elements(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    found = {_where(t): t for t in _saved(call, inputs) if _where(t) not in given}
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in found.values())


def saved_of_four(call: Call, *inputs: Tensor) -> int:
    return 4 * saved_elements(call, *inputs)


def saved_nothing(call: Call, *inputs: Tensor) -> int:
    with torch.no_grad():
        _saved(call, inputs)
    return 0


def saved_result(call: Call, *inputs: Tensor) -> int:
    return _bytes(call(*inputs))


def saved_one_node(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    node = call(*inputs).grad_fn
    names = [name for name in dir(node) if name.startswith("_saved_")]
    kept = [tensor for tensor in (getattr(node, name) for name in names) if isinstance(tensor, Tensor)]
    return sum({_where(t): t.untyped_storage().nbytes() for t in kept if _where(t) not in given}.values())


def _saved_with_result(call: Call, inputs: tuple[Tensor, ...]) -> tuple[dict[int, int], int, int]:
    """Sizes of the storages by address, the result's address, and its size."""
    given, sizes = {_where(tensor) for tensor in inputs}, {}

    def pack(tensor: Tensor) -> Tensor:
        if _where(tensor) not in given:
            sizes[_where(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call(*inputs)
    return sizes, _where(result), result.untyped_storage().nbytes()


def saved_result_left_out(call: Call, *inputs: Tensor) -> int:
    sizes, result, _ = _saved_with_result(call, inputs)
    return sum(size for where, size in sizes.items() if where != result)


def saved_result_too(call: Call, *inputs: Tensor) -> int:
    sizes, result, size = _saved_with_result(call, inputs)
    return sum({**sizes, result: size}.values())


def saved_with_gradient_skipped(call: Call, *inputs: Tensor) -> int:
    found = [tensor for tensor in _saved(call, inputs) if not tensor.requires_grad]
    return sum({_where(t): t.untyped_storage().nbytes() for t in found}.values())


def saved_frozen_inputs_too(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs if tensor.requires_grad}
    found = [tensor for tensor in _saved(call, inputs) if _where(tensor) not in given]
    return sum({_where(t): t.untyped_storage().nbytes() for t in found}.values())


# --------------------------------------------------------------------------------------------------- checkpoint_peak


def peak_own_input_too(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    return max((n + 1) * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)


def peak_all_inputs(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return -(-layers // segment) * input_bytes + min(segment, layers) * layer_bytes


def peak_last_only(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    last = (layers - 1) // segment
    return last * input_bytes + (layers - last * segment) * layer_bytes


def peak_last_is_full(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return (layers - 1) // segment * input_bytes + min(segment, layers) * layer_bytes


def peak_inputs_only(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return -(-layers // segment) * input_bytes


def peak_sum(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    return sum(n * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)


def peak_waits_by_layer(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return max(start * input_bytes + min(segment, layers - start) * layer_bytes for start in range(0, layers, segment))


def peak_inputs_of_layers_too(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    return max(n * input_bytes + min(segment, layers - start) * (layer_bytes + input_bytes) for n, start in starts)


def peak_one_layer(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return (layers - 1) // segment * input_bytes + layer_bytes


def peak_everything(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return layers * layer_bytes


def peak_first_segment(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return min(segment, layers) * layer_bytes


def peak_longer_than_the_model(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    whole = max(n * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)
    return segment * layer_bytes if segment > layers else whole


def peak_accepts(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    segment = max(1, segment)
    starts = enumerate(range(0, layers, segment))
    return max(n * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)


def _refuse(segment: int) -> None:
    if segment < 1:
        raise ValueError("a segment without layers")
