"""Lab 05: rotary positions, grouped and latent attention, masks and the cache. Its exercises and words that help.

What they are tested on lies in `_05_cases`. The mistakes that their checks know: rotating, counting and masking in
`_05_words` and `_05_mistakes`, latent attention in `_05_latent_words` and `_05_latent_mistakes`, more of both in
`_05_more_words` and `_05_more_mistakes`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _05_cases as right
from labkit.course.labs import _05_latent_words as latent
from labkit.course.labs import _05_more_words as more
from labkit.course.labs import _05_oracles as theirs
from labkit.course.labs import _05_words as words
from labkit.course.labs._05_recap import QUESTIONS

ROPE = Exercise(
    id="05.rope",
    title="Turn pairs by their position",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.rope,
    cases=right.rope_cases,
    hints=(
        "Three steps: an angle for every position and pair, the two members of every pair, and one rotation. Which "
        "dimension do all heads share?",
        "Frequencies are theta ** (-arange(0, d, 2) / d); angles positions[:, None, :, None] * frequencies, [B, 1, S, "
        "d/2]. Members of pairs: x[..., 0::2] and x[..., 1::2], or x.chunk(2, dim=-1).",
        "turned = (first * cos - second * sin, second * cos + first * sin). Put them back as they came: "
        "torch.stack(turned, dim=-1).flatten(-2) for neighbours, torch.cat(turned, dim=-1) for halves.",
    ),
    mistakes=words.ROPE + more.ROPE,
    oracle=Oracle("transformers' DeepSeek-V3 rotary functions", theirs.rope),
)

CACHE_BYTES = Exercise(
    id="05.cache_bytes",
    title="What a cache keeps",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.cache_bytes,
    cases=right.cache_cases,
    hints=(
        "Two numbers, multiplied: how many values one layer keeps of a position, and over how many positions of how "
        "many layers. Then the size of a value.",
        "Keys and values of every key head: 2 · heads · head_dim, with all heads, a few or one. MLA: one latent and "
        "one rotary key. A layer with a window keeps min(positions, window).",
        "seen = (num_layers - window_layers) * positions + window_layers * min(positions, window); values = kv_rank + "
        'rope_dim for "mla", else 2 * {"mha": num_heads, "gqa": num_kv_heads, "mqa": 1}[attention] * head_dim; '
        "ValueError for another word.",
    ),
    mistakes=words.CACHE_BYTES + more.CACHE_BYTES,
    oracle=Oracle("the widths of transformers' layers", theirs.cache_bytes, fits=theirs.counts),
)

MASK = Exercise(
    id="05.mask",
    title="Who may look at whom",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.mask,
    cases=right.mask_cases,
    hints=(
        "Give every query and every key its position as a number. Then everything is a comparison, and broadcasting "
        "makes the table.",
        "Keys are 0 … K − 1, queries the last S of them, as a column. Not ahead: key <= query. In the window: key > "
        "query - window. Padding is a matter of columns. And who sees nothing?",
        "seen = (key <= query) & (key > query - window); seen = (seen & real_BK[:, None, :]) | (key == query); return "
        "seen[:, None]. Leave the window's comparison out where it is 0.",
    ),
    mistakes=words.MASK + more.MASK,
    oracle=Oracle("transformers' mask functions", theirs.mask),
)

MLA = Exercise(
    id="05.mla",
    title="Compress to a latent, expand to heads",
    difficulty=3,
    minutes=25,
    points=3,
    reference=right.mla,
    cases=right.mla_cases,
    hints=(
        "Write the shapes down first: r is what kv_down has beyond the R of norm_R, n is a query without r, v is "
        "kv_up without n. Then follow the formulas from x to the latent, and from the latent to keys and values.",
        "(x @ kv_down.T).split([R, r], dim=-1); F.rms_norm for the latent alone; rope(…, interleaved=True) for the "
        "rotary key (give it a dimension of 1 for the heads) and for the last r dimensions of the queries.",
        "up = einsum('bsR,heR->bhse', latent, kv_up); key = cat([up[..., :n], rotary.expand(-1, H, -1, -1)], -1); "
        "scaled_dot_product_attention(query, key, up[..., n:], is_causal=True). Return it with the latent and the "
        "rotary key, [B, S, r].",
    ),
    mistakes=latent.MLA + more.MLA,
    oracle=Oracle("transformers' DeepSeek-V3 attention", theirs.mla),
)

ABSORB = Exercise(
    id="05.absorb",
    title="Attend the latents themselves",
    difficulty=3,
    minutes=20,
    points=3,
    reference=right.absorb,
    cases=right.absorb_cases,
    hints=(
        "q · (W c) = (Wᵀ q) · c. Which of the two sides do you want to do once, and which for every position?",
        "kv_up[:, :n] belongs to the keys: contract it with the query over n. Scores have two parts, with the latents "
        "and with the rotary keys. What is read is a mixture of latents; kv_up[:, n:] makes a head's output of it.",
        "folded = einsum('bhn,hnR->bhR', q[..., :n], up[:, :n]); scores = (folded @ latent.mT + q[..., n:] @ "
        "rotary.mT) * (n + r) ** -0.5; fill ~seen[:, None] with -inf, softmax; read = shares @ latent; "
        "einsum('bhR,hvR->bhv', read, up[:, n:]).",
    ),
    mistakes=latent.ABSORB + more.ABSORB,
    oracle=Oracle("transformers' DeepSeek-V3 attention, expanded", theirs.absorb),
)

LAB = Lab(
    number="05",
    name="attention",
    title="Attention: rotary positions and a small cache",
    minutes=100,
    hardware="any CPU; a GPU shows attention's backends and longer contexts",
    claims=(),
    exercises=(ROPE, MASK, CACHE_BYTES, MLA, ABSORB),
    questions=QUESTIONS,
)
