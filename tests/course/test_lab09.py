"""Lab 09: references against labkit's own kernels and against oracles, no two programs on one result, sources."""

from __future__ import annotations

import pytest
import torch

from labkit.course import labs
from labkit.course.given import OtherDevice, on_another_device
from labkit.course.labs import _09_cases as inputs
from labkit.kernels import guard, interpreter, permute
from labkit.kernels.grouped_mm import gate_up, neighbours, rows_times
from labkit.kernels.grouped_mm_backward import weight_gradient
from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.kernels.tiles import Tile

EXERCISES = {exercise.name: exercise for exercise in labs.lab("09").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
KERNELS = ("gather", "swiglu_epilogue", "weight_gradient")
DEVICE = "cpu" if INTERPRETED else "cuda"
BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
TILE = Tile(16, 32, 16, 4, 2)
T, D, F, E, K = 13, 24, 20, 5, 2


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture
def routed():
    """Ids that leave expert 2 without a token, their map in tiles of 16 rows, and whose row each is."""
    ids = torch.rand(T, E, generator=torch.Generator().manual_seed(4)).argsort(1)[:, :K].to(DEVICE)
    ids = torch.where(ids == 2, 3, ids)
    places = permute.expert_map(ids, E, 16)
    return places, places.pair_N // K


def work(places, width):
    """The work list of a product so wide, in tiles of 16 by 16."""
    expert, row = PART["tile_map"](places.offset_E1.diff().long(), 16)
    columns = -(-width // 16)
    m, n = PART["tile_order"](torch.arange(len(expert) * columns, device=DEVICE), len(expert), columns, 2)
    return expert[m].int(), row[m].int(), (n * 16).int()


# ------------------------------------------------------------------------------------------------- what references do


def test_the_map_is_that_of_labkits_kernel(routed):
    places, _ = routed
    expert, row = PART["tile_map"](places.offset_E1.diff().long(), 16)
    count = int(places.first_tile_E1[-1])
    assert expert.tolist() == places.tile_expert[:count].tolist()
    within = torch.arange(count, device=DEVICE) - places.first_tile_E1[expert].long()
    assert torch.equal(row, places.offset_E1[expert].long() + 16 * within)


@triton.jit
def order_kernel(row_ptr, column_ptr, rows, columns):
    tile = tl.program_id(0)
    row, column = neighbours(tile, rows, columns)
    tl.store(row_ptr + tile, row)
    tl.store(column_ptr + tile, column)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 2), (35, 3), (5, 7)])
def test_tiles_come_in_the_order_of_labkits_kernels(rows, columns):
    found = [torch.empty(rows * columns, dtype=torch.int32, device=DEVICE) for _ in range(2)]
    order_kernel[(rows * columns,)](*found, rows, columns)
    expected = PART["tile_order"](torch.arange(rows * columns), rows, columns, 16)
    assert all(torch.equal(a.cpu().long(), b) for a, b in zip(found, expected, strict=True))


def test_products_are_those_of_labkits_kernels(routed):
    places, token = routed
    x, weights, down = normal(1, T, D), normal(2, E, 2 * F, D), normal(3, E, D, F)
    N = T * K
    out, pre, hidden = (torch.empty(N, width, device=DEVICE) for width in (2 * F, 2 * F, F))
    tiles = work(places, 2 * F)
    PART["gather"][(len(tiles[0]),)](x, token, weights, out, *tiles, places.offset_E1, D, 2 * F, **BLOCKS)
    tiles = work(places, F)
    how = {"SAVE": True, **BLOCKS}
    PART["swiglu_epilogue"][(len(tiles[0]),)](x, token, weights, pre, hidden, *tiles, places.offset_E1, D, F, **how)
    right_hidden, right_pre = gate_up(x, weights, places, TILE, save=True)
    close = {"atol": 1e-4 if INTERPRETED else 5e-2, "rtol": 1e-4 if INTERPRETED else 1e-2}  # a GPU rounds to tf32
    torch.testing.assert_close(out, right_pre, **close)
    torch.testing.assert_close(pre, right_pre, **close)
    torch.testing.assert_close(hidden, right_hidden, **close)
    right = rows_times(x, down.mT.contiguous(), places, TILE, gather=True, transposed=True)
    out = torch.empty(N, F, device=DEVICE)
    PART["gather"][(len(tiles[0]),)](x, token, down.mT.contiguous(), out, *tiles, places.offset_E1, D, F, **BLOCKS)
    torch.testing.assert_close(out, right, **close)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_of_labkits_kernel(routed, turned):
    places, token = routed
    x, y = normal(1, T, D), normal(2, T * K, F)
    out = torch.full((E, F, D) if turned else (E, D, F), float("nan"), device=DEVICE)
    strides = (1, D) if turned else (F, 1)
    grid = (E, -(-D // 16), -(-F // 16))
    PART["weight_gradient"][grid](x, y, token, places.offset_E1, out, D, F, *strides, **BLOCKS)
    right = weight_gradient(x, y, places, TILE, transposed=turned)
    torch.testing.assert_close(out, right, atol=1e-4 if INTERPRETED else 5e-2, rtol=1e-2)
    assert not out[2].any()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of a sigmoid far below zero, which is right as it is
@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
@pytest.mark.parametrize("name", KERNELS)
def test_no_two_programs_of_a_reference_touch_the_same_result(name):
    for case in EXERCISES[name].cases(3):
        made = [torch.zeros(a.shape, dtype=getattr(torch, a.dtype)) for a in case.args if isinstance(a, guard.Out)]
        left = iter(made)
        args = [next(left) if isinstance(arg, guard.Out) else arg for arg in case.args]
        with interpreter.watch({str(i): tensor for i, tensor in enumerate(made)}) as log:
            PART[name][case.kwargs["grid"]](*args, **case.kwargs["constants"])
        written = [access for access in log if access.buffer]
        assert written
        assert interpreter.races(written) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_on_a_gpu_in_both_formats_of_two_bytes(routed, dtype):
    places, token = routed
    x, weights = normal(1, T, D).to(dtype), normal(2, E, 2 * F, D).to(dtype)
    pre, hidden = (torch.empty(T * K, width, device=DEVICE, dtype=dtype) for width in (2 * F, F))
    tiles = work(places, F)
    how = {"SAVE": True, **BLOCKS}
    PART["swiglu_epilogue"][(len(tiles[0]),)](x, token, weights, pre, hidden, *tiles, places.offset_E1, D, F, **how)
    offsets = places.offset_E1[1:]
    right = torch.nn.functional.grouped_mm(x[token.long()], weights.mT, offs=offsets)
    torch.testing.assert_close(pre, right, atol=5e-2, rtol=2e-2)
    gate, up = pre.float().chunk(2, -1)
    torch.testing.assert_close(hidden.float(), torch.nn.functional.silu(gate) * up, atol=5e-2, rtol=2e-2)


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 6


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("tile_map", "renumbered"),
        ("gather", "one_row_too_many"),
        ("swiglu_epilogue", "activated_saved"),
        ("tile_order", "last_group_is_full"),
        ("weight_gradient", "into_the_next_expert"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


@triton.jit
def stub(x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
         BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Nothing yet."""
    raise NotImplementedError()


@triton.jit
def one_program_only(x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
                     BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    at = tl.arange(0, BLOCK_M)[:, None] * d_stride + tl.arange(0, BLOCK_N)[None, :] * w_stride
    tl.store(out_ptr + at, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), mask=at < 0)


def test_kernels_that_no_mistake_is_like():
    exercise = EXERCISES["weight_gradient"]
    assert exercise.test(stub, (0,)).status == "blank"
    assert exercise.test(one_program_only, (0,)).diagnosis == "not_all_written"


def test_counts_elsewhere_are_judged_by_what_an_answer_makes():
    """Made on the default device: wrong there. Moved on purpose, or not asked: right. Blank stays blank."""
    exercise = EXERCISES["tile_map"]
    (case,) = (case for case in exercise.cases(0) if case.through)
    counts, block_m = case.args

    def moved(counts, block_m):
        zero = torch.zeros(1, dtype=torch.int64).to(counts.device)
        return tuple(part + zero for part in exercise.reference(counts, block_m))

    def stays(counts, block_m):
        return tuple(torch.tensor(part.tolist(), dtype=part.dtype) for part in exercise.reference(counts, block_m))

    def mixes(counts, block_m):
        return exercise.reference(counts + torch.zeros(1, dtype=torch.int64), block_m)

    right = exercise.reference(counts, block_m)
    assert all(torch.equal(a, b) for a, b in zip(on_another_device(moved, counts, block_m), right, strict=True))
    for answer in (stays, mixes):
        with pytest.raises(OtherDevice):
            on_another_device(answer, counts, block_m)
        assert exercise.test(answer, (0,)).diagnosis == "other_device"


@pytest.mark.parametrize("name", KERNELS)
def test_one_case_has_blocks_of_three_sizes(name):
    """Or a kernel that takes one for another would pass."""
    (case,) = (case for case in EXERCISES[name].cases(0) if case.label == inputs.THREE)
    blocks = {size for constant, size in case.kwargs["constants"].items() if constant.startswith("BLOCK")}
    assert len(blocks) == 3
    found = guard.launch(PART[name], *case.args, **case.kwargs)
    assert not any(part.isnan().any() for part in (found if isinstance(found, tuple) else (found,)))


def test_drawn_tokens_are_never_in_the_order_of_rows():
    """Or a kernel that does not gather would pass."""
    for case in inputs.gather_cases(0)[1:]:
        tokens = case.args[1]
        assert tokens.tolist() != list(range(len(tokens)))
