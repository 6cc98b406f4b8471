"""Lab 11: fewer bits, experts included. Its exercises and words that help.

What they are tested on lies in `_11_cases`, right answers in `_11_answers`, the mistakes that their checks know in
the `_11_…words`, as the `_11_…mistakes` make them.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _11_answers as right
from labkit.course.labs import _11_cases as inputs
from labkit.course.labs import _11_more_words as more
from labkit.course.labs import _11_oracles as theirs
from labkit.course.labs import _11_words as words
from labkit.course.labs._11_recap import QUESTIONS

ABSMAX = Exercise(
    id="11.absmax",
    title="Eight bits, a scale for every row",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.absmax,
    cases=inputs.absmax_cases,
    hints=(
        "127 steps have to reach from zero to the largest weight of a row, whatever its sign. How long is a step? And "
        "how long where that largest weight is zero?",
        "`w.abs().amax(dim=-1, keepdim=True)` is the largest of each row, [R, 1]. Divide by the step, round, and only "
        "then convert: `.to(torch.int8)` alone cuts off. Refuse what is not finite before anything else.",
        "if not w_RC.isfinite().all(): raise ValueError(…). w_RC = w_RC.float(); largest = w_RC.abs().amax(dim=-1, "
        "keepdim=True); step = torch.where(largest > 0, largest, 1.0) / 127; return (w_RC / step).round().to("
        "torch.int8), largest.",
    ),
    mistakes=words.ABSMAX,
    oracle=Oracle("bitsandbytes' INT8 by rows", theirs.absmax, fits=theirs.absmax_fits, needs="bitsandbytes"),
)

OUTLIER_PRODUCT = Exercise(
    id="11.outlier_product",
    title="LLM.int8: a product with its outliers apart",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.outlier_product,
    cases=inputs.outlier_cases,
    hints=(
        "Two products are added: columns without outliers in whole numbers, columns with outliers as they are. A "
        "column "
        "belongs to one of them for all tokens. Which values may a token's scale be chosen from?",
        "outlier = (x.abs() >= threshold).any(dim=0), [C]. Set those columns of x to zero before you look for each "
        "token's largest. The whole numbers' sum is worth largest_T1/127 · largest_R1.T/127. The other part is "
        "x[:, outlier] times the weights made whole, codes · largest_R1 / 127, of these columns.",
        "inside = x_TC.masked_fill(outlier, 0.0); largest_T1 = inside.abs().amax(dim=-1, keepdim=True); step = "
        "torch.where(largest_T1 > 0, largest_T1, 1.0) / 127; sums = ((inside / step).round().double() @ "
        "codes_RC.double().T).float(). Return sums * step * (largest_R1.T / 127) + x_TC[:, outlier] @ (codes_RC[:, "
        "outlier] * largest_R1 / 127).T.",
    ),
    mistakes=words.OUTLIER_PRODUCT,
    oracle=Oracle(
        "bitsandbytes' INT8 product of the rest", theirs.outlier_product, fits=theirs.outlier_fits, needs="bitsandbytes"
    ),
    atol=1e-4,
)

NF4 = Exercise(
    id="11.nf4",
    title="Two weights in a byte",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.nf4,
    cases=inputs.nf4_cases,
    hints=(
        "Three steps: each block over its largest size; for each weight the number of the nearest level; two numbers "
        "into a byte. A byte's high half is worth sixteen times its low half.",
        "`w.unflatten(-1, (-1, block))` is [R, C/block, block]. A block of zeros is divided by 1 instead. "
        "`(scaled[..., "
        "None] - levels).abs().argmin(-1)` finds the nearest. Even columns are `code[:, 0::2]`.",
        "parts = w_RC.unflatten(-1, (-1, block)); largest = parts.abs().amax(-1); scaled = (parts / "
        "torch.where(largest "
        "> 0, largest, 1.0)[..., None]).flatten(-2); code = (scaled[..., None] - levels).abs().argmin(-1).to("
        "torch.uint8); return code[:, 0::2] * 16 + code[:, 1::2], largest.",
    ),
    mistakes=words.NF4,
    oracle=Oracle("bitsandbytes' NF4", theirs.nf4, fits=theirs.nf4_fits, needs="bitsandbytes"),
)

FP8_BLOCK = Exercise(
    id="11.fp8_block",
    title="FP8 with a scale for every block",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.fp8_block,
    cases=inputs.fp8_cases,
    hints=(
        "A block's largest size shall become 448, E4M3's largest number. Then torch's conversion rounds. The blocks at "
        "the right and lower edge may be smaller; they have scales as well.",
        "A double loop over blocks is fine: part = w[i * block : (i + 1) * block, j * block : (j + 1) * block]; slices "
        "that reach over the edge are cut by themselves. There are -(-R // block) rows of blocks. Rows of the scale "
        "are rows of the matrix.",
        "scale = torch.ones(-(-R // block), -(-C // block)); codes = torch.empty(R, C, dtype=torch.float8_e4m3fn). For "
        "each block: largest = part.abs().max(); if largest > 0: scale[i, j] = largest / 448; codes[the same slices] = "
        "(part / scale[i, j]).to(torch.float8_e4m3fn). Return codes, scale.",
    ),
    mistakes=words.FP8_BLOCK,
    oracle=Oracle("the nearest of E4M3's numbers, in float64", theirs.fp8_block),
)

BYTES_BY_ROOM = Exercise(
    id="11.bytes_by_room",
    title="What a model weighs, room by room",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.bytes_by_room,
    cases=inputs.room_cases,
    hints=(
        "Packed weights are no parameters. Where else does a module keep tensors? And which of them share memory?",
        "`named_parameters()` and `named_buffers()` together have them all, those too that a state_dict leaves out. "
        "The memory behind a tensor is `untyped_storage()`: its address is `data_ptr()`, its size `nbytes()`.",
        "found, seen = {}, set(); for name, tensor in [*model.named_parameters(), *model.named_buffers()]: storage = "
        "tensor.untyped_storage(); if storage.data_ptr() not in seen: seen.add(storage.data_ptr()); found[room(name)] "
        "= found.get(room(name), 0) + storage.nbytes(). Return found.",
    ),
    mistakes=more.BYTES_BY_ROOM,
)

PICK_PRECISION = Exercise(
    id="11.pick_precision",
    title="Who gets the dear bits?",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.pick_precision,
    cases=inputs.pick_cases,
    hints=(
        "If n of T tokens get high_bits and the others low_bits, what do they cost on average? Solve for n, and do not "
        "spend more than there is.",
        "n = ⌊T · (budget − low) / (high − low)⌋, at most T; a budget below low buys nothing: ValueError. Equal "
        "features: `argsort(descending=True, stable=True)` keeps the earlier first; a threshold would let all of them "
        "in.",
        "number = min(T, int(T * (budget - low_bits) / (high_bits - low_bits))); high = torch.zeros(T, dtype="
        "torch.bool); high[feature_T.argsort(descending=True, stable=True)[:number]] = True; return high.",
    ),
    mistakes=more.PICK_PRECISION,
)

LAB = Lab(
    number="11",
    name="quantization",
    title="Quantization: fewer bits, experts included",
    minutes=120,
    hardware="any CPU (formats are computed in torch); a GPU for the kernels' times",
    claims=(4, 10, 11),
    exercises=(ABSMAX, OUTLIER_PRODUCT, NF4, FP8_BLOCK, BYTES_BY_ROOM, PICK_PRECISION),
    questions=QUESTIONS,
)
