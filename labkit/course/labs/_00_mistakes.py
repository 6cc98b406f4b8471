"""Lab 00: what a learner's arithmetic does when it has made one of the mistakes that its checks know."""

from __future__ import annotations

import math
from collections.abc import Callable

from labkit.course.judge import Failure

Pair = tuple[int, int]


def expert_two_matrices(d_model: int, d_expert: int) -> int:
    return 2 * d_model * d_expert


def expert_one_matrix(d_model: int, d_expert: int) -> int:
    return d_model * d_expert


def expert_with_biases(d_model: int, d_expert: int) -> int:
    return 3 * d_model * d_expert + 2 * d_expert + d_model


def expert_square(d_model: int, d_expert: int) -> int:
    return 3 * d_model * d_model


def expert_added(d_model: int, d_expert: int) -> int:
    return 3 * (d_model + d_expert)


def _parts(D: int, F: int, E: int, K: int, shared: int) -> tuple[int, int, int, int]:
    expert = 3 * D * F
    return expert, E * D, E * expert, shared * expert


def layer_without_router(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, _, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return routed + shared, top_k * expert + shared


def layer_partial_router(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + routed + shared, top_k * d_model + top_k * expert + shared


def layer_router_asleep(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + routed + shared, top_k * expert + shared


def layer_shared_asleep(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + routed + shared, router + top_k * expert


def layer_without_shared(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, _ = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + routed, router + top_k * expert


def layer_all_active(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    _, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + routed + shared, router + routed + shared


def layer_swapped(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    return router + top_k * expert + shared, router + routed + shared


def layer_scaled(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    _, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    total = router + routed + shared
    return total, total * top_k // num_experts


def layer_shared_in_router(d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int = 0) -> Pair:
    expert, router, routed, shared = _parts(d_model, d_expert, num_experts, top_k, num_shared)
    always = router + num_shared * d_model + shared
    return always + routed, always + top_k * expert


def kv_keys_only(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * num_kv_heads * head_dim * bytes_per_value


def kv_all_heads(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * num_heads * head_dim * bytes_per_value


def kv_one_layer(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return 2 * num_kv_heads * head_dim * bytes_per_value


def kv_always_16_bit(
    num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2
) -> int:
    return num_layers * 2 * num_kv_heads * head_dim * 2


def kv_values(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * num_kv_heads * head_dim


def kv_bits(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * num_kv_heads * head_dim * bytes_per_value * 8


def kv_group_size(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * (num_heads // num_kv_heads) * head_dim * bytes_per_value


def kv_heads_added(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2) -> int:
    return num_layers * 2 * (num_heads + num_kv_heads) * head_dim * bytes_per_value


def kv_heads_added_once(
    num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_value: int = 2
) -> int:
    return num_layers * (num_heads + num_kv_heads) * head_dim * bytes_per_value


def _adam(P: int, weights: int, gradients: int, master: int, moments: int) -> dict[str, int]:
    return {"weights": weights * P, "gradients": gradients * P, "master": master * P, "moments": moments * P}


def adam_no_master(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 2, 0, 8) if mixed else _adam(num_params, 4, 4, 0, 8)


def adam_second_copy(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 2, 4, 8) if mixed else _adam(num_params, 4, 4, 4, 8)


def adam_one_moment(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 2, 4, 4) if mixed else _adam(num_params, 4, 4, 0, 4)


def adam_narrow_moments(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 2, 4, 4) if mixed else _adam(num_params, 4, 4, 0, 8)


def adam_wide_gradients(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 4, 4, 8) if mixed else _adam(num_params, 4, 4, 0, 8)


def adam_no_gradients(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 0, 4, 8) if mixed else _adam(num_params, 4, 0, 0, 8)


def adam_always_mixed(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(num_params, 2, 2, 4, 8)


def adam_per_parameter(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(1, 2, 2, 4, 8) if mixed else _adam(1, 4, 4, 0, 8)


def adam_bits(num_params: int, mixed: bool = True) -> dict[str, int]:
    return _adam(8 * num_params, 2, 2, 4, 8) if mixed else _adam(8 * num_params, 4, 4, 0, 8)


def gpus_rounded_down(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return int(needed / (gpu_memory * (1 - reserve)))


def gpus_rounded(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return round(needed / (gpu_memory * (1 - reserve)))


def gpus_not_rounded(needed: int, gpu_memory: int, reserve: float = 0.1) -> float:
    _need_share(reserve)
    return needed / (gpu_memory * (1 - reserve))


def gpus_one_more(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return int(needed / (gpu_memory * (1 - reserve))) + 1


def gpus_nothing_reserved(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return math.ceil(needed / gpu_memory)


def gpus_reserve_on_needed(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return math.ceil(needed * (1 + reserve) / gpu_memory)


def gpus_times_the_rest(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return math.ceil(needed / gpu_memory * (1 - reserve))


def gpus_only_the_reserve(needed: int, gpu_memory: int, reserve: float = 0.1) -> int:
    _need_share(reserve)
    return math.ceil(needed / (gpu_memory * (reserve or 1)))


def _need_share(reserve: float) -> None:
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve is {reserve}")


def at_first(*mistaken: Callable[..., float]) -> Callable[[Failure], bool]:
    """Recognises, on the first case that fails, what one of `mistaken` returns there: for answers that fail more
    cases than the mistake does, such as one that also refuses nothing."""

    def made(failure: Failure) -> bool:
        theirs = [wrong(*failure.case.args) for wrong in mistaken]
        return any(type(one) is type(failure.got) and one == failure.got for one in theirs)

    return made


def lacks_parts(failure: Failure) -> bool:
    return type(failure.got) is dict and bool(failure.expected.keys() - failure.got.keys())


def has_other_parts(failure: Failure) -> bool:
    return type(failure.got) is dict and bool(failure.got.keys() - failure.expected.keys())


def scaled_without_rounding(failure: Failure) -> bool:
    total, active = failure.got
    return total == failure.expected[0] and active == total * failure.case.args[3] / failure.case.args[2]
