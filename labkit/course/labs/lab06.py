"""Lab 06: the whole sparse transformer. Its exercises and words that help.

What they are tested on lies in `_06_cases`. The mistakes that their checks know: those in a block and a placement in
`_06_words` and `_06_mistakes`, in a cached step in `_06_step_words` and `_06_step_mistakes`, in reading a file and in
sampling in `_06_file_words` and `_06_file_mistakes`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _06_cases as right
from labkit.course.labs import _06_file_words as file_words
from labkit.course.labs import _06_oracles as theirs
from labkit.course.labs import _06_step_words as step_words
from labkit.course.labs import _06_words as words
from labkit.course.labs._06_naming import NamingExercise
from labkit.course.labs._06_recap import QUESTIONS

BLOCK = Exercise(
    id="06.block",
    title="One layer: norm, part, add; twice",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.block,
    cases=right.block_cases,
    hints=(
        "The stream x runs through the block untouched; each part adds something to it. What does a part read?",
        "Two lines, one for each part. A norm never changes x itself: it is applied on the way into the part.",
        "x = x + attention(norm_attention(x)); return x + ffn(norm_ffn(x)).",
    ),
    mistakes=words.BLOCK,
    oracle=Oracle("transformers' Qwen3-MoE decoder layer", theirs.block, fits=lambda case: case.through is None),
)

PLACEMENT = Exercise(
    id="06.placement",
    title="Which layers are sparse, and what that costs",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.placement,
    cases=right.placement_cases,
    hints=(
        "First the list of sparse layers, from both rules at once. Everything else is counting.",
        "What does every token pass? Dense layers, routers, shared experts. To that, add all routed experts for the "
        "total, and top_k of them for what is active. A SwiGLU network has three matrices.",
        "sparse = [i for i in range(num_layers) if i >= num_dense and (i + 1) % every == 0]; expert = 3 * d_model * "
        "d_expert; always = (num_layers - len(sparse)) * 3 * d_model * d_dense + len(sparse) * (num_experts * d_model "
        "+ num_shared * expert); then always + len(sparse) * num_experts * expert, and the same with top_k.",
    ),
    mistakes=words.PLACEMENT,
    oracle=Oracle("transformers' Qwen3-MoE and DeepSeek-V3 layers, counted", theirs.placement, fits=theirs.places),
)

NAME_MAP = NamingExercise(
    id="06.name_map",
    title="From a file's tensors to ours",
    difficulty=3,
    minutes=25,
    points=3,
    reference=right.name_map,
    cases=right.names_cases,
    hints=(
        "Keep a copy of the dictionary and take tensors out of it. What you want to take and is not there is missing; "
        "what is left at the end is too many.",
        "Three kinds of work: renames (fill {i} in on both sides), one SwiGLU network to a pair (gate above up, and "
        "down), and for a sparse layer the pairs of all experts stacked. The router's name is mlp.gate.weight, a "
        "dense layer's gate is mlp.gate_proj.weight: easily taken for one another by str.replace.",
        "def take(name): raise ValueError(f'{name} is missing') if it is not in left, else left.pop(name). def swiglu("
        "stem): torch.cat([take(f'{stem}.gate_proj.weight'), take(f'{stem}.up_proj.weight')]), and down. For a sparse "
        "layer: zip(*[swiglu(f'{stem}.experts.{e}') for e in range(num_experts)]), torch.stack each. At the end, if "
        "left: raise ValueError with its names.",
    ),
    mistakes=file_words.NAME_MAP,
    oracle=Oracle("what transformers' Qwen3-MoE holds after loading the file", theirs.name_map, fits=theirs.accepted),
)

SAMPLE = Exercise(
    id="06.sample",
    title="Temperature, top-k and top-p",
    difficulty=2,
    minutes=20,
    points=2,
    reference=right.sample,
    cases=right.sample_cases,
    hints=(
        "The order decides: temperature, then top-k, then top-p of what top-k has left. Removed means minus infinity, "
        "and the softmax at the end makes the rest sum to one.",
        "Top-k: everything below the k-th best value goes (ties stay). Top-p: sort, softmax, cumsum; a token goes if "
        "those better than it hold p, and the best one never goes. Sorted upwards the same rule reads: it goes if it "
        "and all worse ones hold at most 1 - p. Scatter the mask back to the tokens' places.",
        "Raise ValueError if temperature <= 0. z = logits / temperature. If top_k > 0: z = z.masked_fill(z < z.topk("
        "min(top_k, V)).values[:, -1:], -inf). If top_p < 1: rising, order = z.sort(1); out = rising.softmax(1)"
        ".cumsum(1) <= 1 - top_p; out[:, -1] = False; z = z.masked_fill(out.scatter(1, order, out), -inf). At the end "
        "z.softmax(1).",
    ),
    mistakes=file_words.SAMPLE,
    oracle=Oracle("transformers' logits warpers", theirs.sample, fits=theirs.accepted),
)

CACHED_STEP = Exercise(
    id="06.cached_step",
    title="One token with a KV cache",
    difficulty=3,
    minutes=25,
    points=3,
    reference=right.cached_step,
    cases=right.cached_cases,
    hints=(
        "Four questions: at which position does the new token stand in its row, what goes into the cache, what may it "
        "see, and which query heads belong to which key head?",
        "Position: the number of True in the row. Rotate query and key there, then torch.cat along dim 2. The mask is "
        "real_BS with one True more. Keys and values are repeated with repeat_interleave for the products only.",
        "at = real_BS.sum(1, keepdim=True); keys = cat([keys_BGSd, rotate(key, at)], 2); values = cat([values_BGSd, "
        "value], 2); logits = rotate(query, at) @ keys.repeat_interleave(H // G, 1).mT / d ** 0.5; masked_fill(~F.pad("
        "real_BS, (0, 1), value=True)[:, None, None], -inf); softmax; @ values.repeat_interleave(H // G, 1).",
    ),
    mistakes=step_words.CACHED_STEP,
    oracle=Oracle("transformers' DynamicCache and eager attention", theirs.cached_step),
)

LAB = Lab(
    number="06",
    name="transformer",
    title="The whole sparse transformer",
    minutes=110,
    hardware="any CPU; a GPU generates longer and from a larger model",
    claims=(),
    exercises=(BLOCK, PLACEMENT, NAME_MAP, SAMPLE, CACHED_STEP),
    questions=QUESTIONS,
)
