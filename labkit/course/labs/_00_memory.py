"""Lab 00: the three exercises about memory, with the words that help."""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.judge import Mistake
from labkit.course.labs import _00_cases as right
from labkit.course.labs import _00_mistakes as wrong
from labkit.course.labs import _00_oracles as theirs

KV_BYTES = Exercise(
    id="00.kv_bytes",
    title="What one more token costs in the KV cache",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.kv_bytes,
    cases=right.kv_cases,
    hints=(
        "For one token and one layer: which vectors does attention want to see again later?",
        "A key and a value, each of head_dim numbers, for every key-value head, in every layer. Queries are used once "
        "and forgotten.",
        "Five factors, multiplied: a 2 for key and value, and four of the five arguments. The one that stays out is "
        "the one whose vectors are forgotten.",
    ),
    mistakes=(
        Mistake(
            "one_of_two",
            "Half of it: attention compares with the keys and then adds up the values. Both are kept.",
            like=wrong.kv_keys_only,
        ),
        Mistake(
            "query_heads",
            "You counted query heads. With grouped queries (GQA) several query heads read one pair of key and value; "
            "the cache holds each pair once. That was the reason for inventing it.",
            like=wrong.kv_all_heads,
        ),
        Mistake(
            "one_layer",
            "That is one layer. Each layer has keys and values of its own.",
            like=wrong.kv_one_layer,
        ),
        Mistake(
            "always_16_bit",
            "Right for 16-bit caches only: `bytes_per_value` is not used.",
            like=wrong.kv_always_16_bit,
        ),
        Mistake(
            "values_not_bytes",
            "You counted numbers; each of them takes `bytes_per_value` bytes.",
            like=wrong.kv_values,
        ),
        Mistake(
            "bits",
            "Eight times too much: these are bits. The exercise asks for bytes.",
            like=wrong.kv_bits,
        ),
        Mistake(
            "group_size",
            "You divided query heads by key-value heads. That says how many query heads *share* a pair of key and "
            "value; what is kept is every pair, so ask how many pairs there are.",
            like=wrong.kv_group_size,
        ),
        Mistake(
            "heads_added",
            "Query heads and key-value heads are added up. A query is used once, by its own token, and then forgotten: "
            "only keys and values are kept.",
            like=wrong.kv_heads_added,
            when=wrong.at_first(wrong.kv_heads_added_once),
        ),
    ),
    oracle=Oracle(
        "the growing cache of a tiny transformers Mixtral",
        theirs.kv_bytes,
        fits=lambda case: case.args[0] < 10 and case.args[4:] != (1,),
    ),
)

ADAM_MEMORY = Exercise(
    id="00.adam_memory",
    title="What Adam keeps for every parameter",
    difficulty=2,
    minutes=10,
    points=2,
    reference=right.adam_memory,
    cases=right.adam_cases,
    hints=(
        "Four things are kept for each parameter. For each, ask: how many numbers, and how many bytes each? A float32 "
        "takes 4 bytes, a bfloat16 takes 2.",
        "Mixed: weights 2, gradients 2, master copy 4, and two moments of 4. In float32 throughout, weights and "
        "gradients take 4 each, and the weights are their own master copy.",
        "Begin with size = 2 if mixed else 4, which serves weights and gradients. Then the dict, with all four keys "
        "in both cases, every value a number of bytes times num_params; the master copy needs an if of its own.",
    ),
    mistakes=(
        Mistake(
            "no_master",
            "Mixed precision without the float32 master copy. A typical update is a thousandth of the weight or less, "
            "and bfloat16 rounds that away: the master copy is where small steps add up.",
            like=wrong.adam_no_master,
        ),
        Mistake(
            "second_copy",
            "In float32 throughout there is no second copy: the weights themselves have the precision that the master "
            "copy is kept for.",
            like=wrong.adam_second_copy,
        ),
        Mistake(
            "one_moment",
            "Adam keeps two numbers for every parameter, a mean of the gradient and a mean of its square (Kingma and "
            "Ba 2015, algorithm 1). You kept one, as momentum would.",
            like=wrong.adam_one_moment,
        ),
        Mistake(
            "narrow_moments",
            "Your moments take 2 bytes each in mixed precision. In the convention of this exercise only weights and "
            "gradients are narrow; everything that accumulates stays in float32.",
            like=wrong.adam_narrow_moments,
        ),
        Mistake(
            "wide_gradients",
            "Your gradients are float32 in mixed precision too. Some frameworks do that (18 bytes a parameter), but "
            "the convention asked for is ZeRO's, with 16-bit gradients.",
            like=wrong.adam_wide_gradients,
        ),
        Mistake(
            "no_gradients",
            "Nothing is counted for the gradients. Between backward and step each parameter has one.",
            like=wrong.adam_no_gradients,
        ),
        Mistake(
            "flag_unused",
            "`mixed=False` gives the mixed numbers. In float32 throughout, weights and gradients are wider, and one "
            "part is not needed at all.",
            like=wrong.adam_always_mixed,
        ),
        Mistake(
            "only_the_sum",
            "One number came back. Its parts are asked for: a dict with weights, gradients, master and moments.",
            when=lambda failure: type(failure.got) in (int, float),
        ),
        Mistake(
            "per_parameter",
            "These are the bytes of one parameter. There are `num_params` of them, and the bytes of all are asked for.",
            like=wrong.adam_per_parameter,
        ),
        Mistake(
            "bits",
            "Eight times too much: these are bits. A float32 has 32 of them, which are 4 bytes.",
            like=wrong.adam_bits,
        ),
        Mistake(
            "other_parts",
            'Your dict has a key that was not asked for. The keys are exactly "weights", "gradients", "master" and '
            '"moments": spelled like this, both moments together, and no sum among them.',
            when=wrong.has_other_parts,
        ),
        Mistake(
            "parts_left_out",
            "Your dict lacks one of its four parts. All four keys are there in both precisions, so that results can be "
            "compared; where nothing is kept, the value is 0.",
            when=wrong.lacks_parts,
        ),
    ),
    oracle=Oracle("torch's AdamW, its tensors weighed", theirs.adam_memory, fits=lambda case: case.args[0] < 10**6),
)

GPUS_NEEDED = Exercise(
    id="00.gpus_needed",
    title="The smallest number of cards",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.gpus_needed,
    cases=right.gpus_cases,
    hints=(
        "How much of one card can really be used? Then: how often does that go into what is needed, and which way do "
        "you round?",
        "Of each card gpu_memory · (1 - reserve) is usable. Two and a bit means three. And the docstring says: "
        "one kind of input has to be refused.",
        "Two steps. If reserve is not in [0, 1), raise a ValueError; mind both ends. Then divide needed by what is "
        "usable of one card, in brackets of its own, and let math.ceil round up.",
    ),
    mistakes=(
        Mistake(
            "rounded",
            "You rounded to the nearest number. 2.01 cards' worth needs three cards, because nobody sells a hundredth.",
            like=wrong.gpus_rounded,
            when=wrong.at_first(wrong.gpus_rounded),
        ),
        Mistake(
            "rounded_down",
            "You rounded down, so the last gigabytes have no card to live on.",
            like=wrong.gpus_rounded_down,
            when=wrong.at_first(wrong.gpus_rounded_down),
        ),
        Mistake(
            "not_rounded",
            "That is a fraction of a card. The division is right; what is still missing is the step to whole cards.",
            like=wrong.gpus_not_rounded,
            when=wrong.at_first(wrong.gpus_not_rounded),
        ),
        Mistake(
            "one_too_many",
            "One card too many where it fits exactly: rounding down and adding one is not the same as rounding up.",
            like=wrong.gpus_one_more,
            when=wrong.at_first(wrong.gpus_one_more),
        ),
        Mistake(
            "nothing_reserved",
            "`reserve` is not used. The driver, the workspace and fragmentation take their part of every card.",
            like=wrong.gpus_nothing_reserved,
            when=wrong.at_first(wrong.gpus_nothing_reserved),
        ),
        Mistake(
            "bracket",
            "A larger reserve gives fewer cards here. Read your line from left to right, as Python does: the usable "
            "share multiplies the quotient, instead of making the card smaller.",
            like=wrong.gpus_times_the_rest,
            when=wrong.at_first(wrong.gpus_times_the_rest),
        ),
        Mistake(
            "reserve_on_needed",
            "You made the need larger by the reserve instead of the cards smaller. With a tenth reserved, a card "
            "holds 9/10 of its memory, and 1/0.9 is more than 1.1.",
            like=wrong.gpus_reserve_on_needed,
            when=wrong.at_first(wrong.gpus_reserve_on_needed),
        ),
        Mistake(
            "reserve_is_all",
            "You used the reserved part of each card and left the rest empty.",
            like=wrong.gpus_only_the_reserve,
            when=wrong.at_first(wrong.gpus_only_the_reserve),
        ),
    ),
)
