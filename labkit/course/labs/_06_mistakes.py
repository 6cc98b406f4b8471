"""Lab 06: what a learner's block and placement do when they have made a known mistake."""

from __future__ import annotations

from labkit.course.judge import Failure
from labkit.course.labs import _06_cases as right

# ------------------------------------------------------------------------------------------------------------- block


def block_post_norm(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_attention(x + attention(x))
    return norm_ffn(x + ffn(x))


def block_detached(x, norm_attention, attention, norm_ffn, ffn):
    x = x.detach() + attention(norm_attention(x))
    return x + ffn(norm_ffn(x))


def block_norm_of_the_output(x, norm_attention, attention, norm_ffn, ffn):
    x = x + norm_attention(attention(x))
    return x + norm_ffn(ffn(x))


def block_residual_after_norm(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_attention(x)
    x = x + attention(x)
    x = norm_ffn(x)
    return x + ffn(x)


def block_parallel(x, norm_attention, attention, norm_ffn, ffn):
    return x + attention(norm_attention(x)) + ffn(norm_ffn(x))


def block_ffn_first(x, norm_attention, attention, norm_ffn, ffn):
    x = x + ffn(norm_ffn(x))
    return x + attention(norm_attention(x))


def block_no_residual(x, norm_attention, attention, norm_ffn, ffn):
    return ffn(norm_ffn(attention(norm_attention(x))))


def block_first_residual_lost(x, norm_attention, attention, norm_ffn, ffn):
    x = attention(norm_attention(x))
    return x + ffn(norm_ffn(x))


def block_second_residual_lost(x, norm_attention, attention, norm_ffn, ffn):
    x = x + attention(norm_attention(x))
    return ffn(norm_ffn(x))


def block_old_residual(x, norm_attention, attention, norm_ffn, ffn):
    return x + ffn(norm_ffn(x + attention(norm_attention(x))))


def block_norms_swapped(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, norm_ffn, attention, norm_attention, ffn)


def block_one_norm(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, norm_attention, attention, norm_attention, ffn)


def block_second_norm_lost(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, norm_attention, attention, lambda y: y, ffn)


def block_no_norm(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, lambda y: y, attention, lambda y: y, ffn)


def block_residual_twice(x, norm_attention, attention, norm_ffn, ffn):
    return x + right.block(x, norm_attention, attention, norm_ffn, ffn)


def block_first_norm_lost(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, lambda y: y, attention, norm_ffn, ffn)


def block_other_norm_twice(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, norm_ffn, attention, norm_ffn, ffn)


def block_first_residual_normed(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_attention(x)
    x = x + attention(x)
    return x + ffn(norm_ffn(x))


def block_second_residual_normed(x, norm_attention, attention, norm_ffn, ffn):
    x = norm_ffn(x + attention(norm_attention(x)))
    return x + ffn(x)


def block_ffn_reads_attention(x, norm_attention, attention, norm_ffn, ffn):
    read = attention(norm_attention(x))
    return x + read + ffn(norm_ffn(read))


def block_stream_lost(x, norm_attention, attention, norm_ffn, ffn):
    return right.block(x, norm_attention, attention, norm_ffn, ffn) - x


def block_norm_at_the_end(x, norm_attention, attention, norm_ffn, ffn):
    return norm_ffn(right.block(x, norm_attention, attention, norm_ffn, ffn))


def block_without_ffn(x, norm_attention, attention, norm_ffn, ffn):
    return x + attention(norm_attention(x))


def block_without_attention(x, norm_attention, attention, norm_ffn, ffn):
    return x + ffn(norm_ffn(x))


def block_first_output_normed(x, norm_attention, attention, norm_ffn, ffn):
    x = x + norm_attention(attention(x))
    return x + ffn(norm_ffn(x))


# --------------------------------------------------------------------------------------------------------- placement


def _count(sparse, layers, d_model, d_dense, d_expert, experts, k, shared, *, matrices=3, router=None, dense=None):
    """Both counts, with what a mistake counts otherwise."""
    expert = matrices * d_model * d_expert
    always = (layers - len(sparse) if dense is None else dense) * matrices * d_model * d_dense
    always += len(sparse) * ((experts * d_model if router is None else router) + shared * expert)
    return sparse, always + len(sparse) * experts * expert, always + len(sparse) * k * expert


def _sparse(layers, dense, every):
    return [i for i in range(layers) if i >= dense and (i + 1) % every == 0]


def place_from_zero(layers, dense, every, *sizes, **named):
    return _placed([i for i in range(layers) if i >= dense and i % every == 0], layers, *sizes, **named)


def place_after_dense(layers, dense, every, *sizes, **named):
    return _placed([i for i in range(layers) if i >= dense and (i - dense + 1) % every == 0], layers, *sizes, **named)


def place_one_late(layers, dense, every, *sizes, **named):
    return _placed([i for i in range(layers) if i > dense and (i + 1) % every == 0], layers, *sizes, **named)


def place_numbers_from_one(layers, dense, every, *sizes, **named):
    sparse, *counts = _placed(_sparse(layers, dense, every), layers, *sizes, **named)
    return [i + 1 for i in sparse], *counts


def place_inverted(layers, dense, every, *sizes, **named):
    sparse = _sparse(layers, dense, every)
    return _placed([i for i in range(layers) if i not in sparse], layers, *sizes, **named)


def place_every_ignored(layers, dense, every, *sizes, **named):
    return _placed(list(range(dense, layers)), layers, *sizes, **named)


def place_dense_ignored(layers, dense, every, *sizes, **named):
    return _placed(_sparse(layers, 0, every), layers, *sizes, **named)


def place_either(layers, dense, every, *sizes, **named):
    return _placed([i for i in range(layers) if i >= dense or (i + 1) % every == 0], layers, *sizes, **named)


def _placed(sparse, layers, d_model, d_dense, d_expert, experts, k, shared=0):
    return _count(sparse, layers, d_model, d_dense, d_expert, experts, k, shared)


def place_no_router(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return _count(_sparse(layers, dense, every), layers, d_model, d_dense, d_expert, experts, k, shared, router=0)


def place_two_matrices(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return _count(_sparse(layers, dense, every), layers, d_model, d_dense, d_expert, experts, k, shared, matrices=2)


def place_dense_everywhere(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return _count(_sparse(layers, dense, every), layers, d_model, d_dense, d_expert, experts, k, shared, dense=layers)


def place_dense_uncounted(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return _count(_sparse(layers, dense, every), layers, d_model, d_dense, d_expert, experts, k, shared, dense=0)


def place_no_shared(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, 0)


def place_shared_among_chosen(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, total, _ = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, 0)[2]


def place_chosen_rows_of_router(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, total, active = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, active - len(sparse) * (experts - k) * d_model


def place_share_of_total(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, total, _ = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, total * k // experts


def place_all_active(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, total, _ = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, total


def place_active_without_dense(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, total, active = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, active - (layers - len(sparse)) * 3 * d_model * d_dense


def place_swapped(*sizes):
    sparse, total, active = right.placement(*sizes)
    return sparse, active, total


def _active(change, layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    """The right answer, but for the active parameters: `change(active, sparse layers, router, expert, k, shared)`."""
    sparse, total, active = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, total, change(active, len(sparse), experts * d_model, 3 * d_model * d_expert, k, shared)


def place_router_idle(*sizes):
    return _active(lambda active, n, router, expert, k, shared: active - n * router, *sizes)


def place_only_routed_active(*sizes):
    return _active(lambda active, n, router, expert, k, shared: n * k * expert, *sizes)


def place_only_experts_active(*sizes):
    return _active(lambda active, n, router, expert, k, shared: n * (k + shared) * expert, *sizes)


def place_dense_narrow(layers, dense, every, d_model, d_dense, d_expert, *others):
    return right.placement(layers, dense, every, d_model, d_expert, d_expert, *others)


def place_router_everywhere(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, *counts = right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared)
    return sparse, *(count + (layers - len(sparse)) * experts * d_model for count in counts)


def place_router_rows_for_shared(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    router = (experts + shared) * d_model
    return _count(_sparse(layers, dense, every), layers, d_model, d_dense, d_expert, experts, k, shared, router=router)


def place_one_early(layers, dense, every, *sizes, **named):
    return _placed([i for i in range(layers) if i >= dense - 1 and (i + 1) % every == 0], layers, *sizes, **named)


def place_shared_once(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    return right.placement(layers, dense, every, d_model, d_dense, d_expert, experts, k, min(shared, 1))


def place_one_layer(layers, dense, every, d_model, d_dense, d_expert, experts, k, shared=0):
    sparse, router = _sparse(layers, dense, every), experts * d_model
    return sparse, *(router + (n + shared) * 3 * d_model * d_expert for n in (experts, k))


def only_counted(failure: Failure) -> bool:
    """The number of sparse layers instead of the layers."""
    return type(failure.got[0]) is int and failure.got[0] == len(failure.expected[0])


def flags(failure: Failure) -> bool:
    """True or False for every layer instead of numbers."""
    return all(type(flag) is bool for flag in failure.got[0])


def no_list(failure: Failure) -> bool:
    """A range, a set or the like."""
    return len(failure.got) == 3 and type(failure.got[0]).__name__ in ("range", "set", "dict", "generator", "Tensor")
