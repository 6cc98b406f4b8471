"""Lab 08: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A kernel reads 1 GB, writes 1 GB and does 4·10⁹ FLOPs, on a GPU of 10¹⁴ FLOP/s and 2·10¹² bytes/s. What would "
        "make it faster?",
        (
            Choice(
                "Fewer FLOPs",
                "They take 0.04 ms; the traffic takes 1 ms. Halving the smaller one changes nothing.",
            ),
            Choice(
                "Fewer bytes",
                "Yes: 2 FLOPs a byte, where the ridge is at 50. It is bound by memory, and only bytes help.",
                right=True,
            ),
            Choice("More programs", "Once the memory is busy all the time, more programs only wait for it."),
        ),
    ),
    Question(
        "A softmax over rows of 50,000 does not fit into one program's registers. One program a row now goes over it "
        "in blocks: once for the maximum, once for the sum, once for the result. What does that cost?",
        (
            Choice(
                "Nothing: the row is in the cache",
                "Sometimes, for part of it. Counted honestly it is read three times, and the bound says so.",
            ),
            Choice(
                "Twice the traffic of a single pass",
                "Yes: three reads and a write against one and one. Keeping a running maximum merges the first two.",
                right=True,
            ),
            Choice("Three times the launches", "It is one kernel: its programs loop."),
        ),
    ),
    Question(
        "A masked kernel gives the right result on tensors of every length you try. You delete the mask of its loads, "
        "and it still does. Is the mask needed?",
        (
            Choice(
                "No: the results prove it",
                "They prove that there was readable memory behind your tensors, this time.",
            ),
            Choice(
                "Yes, and only poison or a checker shows it",
                "Yes. Between guards, or under compute-sanitizer, the same kernel fails at once.",
                right=True,
            ),
            Choice("Only in float16", "What lies behind a tensor has nothing to do with its format."),
        ),
    ),
    Question(
        "Two programs add into the same element with a load and a store. Under the interpreter the sum is right. On a "
        "GPU it",
        (
            Choice("is right, too", "There they run at the same time: both may load before either stores."),
            Choice(
                "may lose one of the two additions",
                "Yes. The interpreter runs programs one after another, so it never shows a race.",
                right=True,
            ),
            Choice("fails with an error", "Nothing fails; the number is wrong, sometimes."),
        ),
    ),
    Question(
        "Thirty-two neighbouring lanes of a kernel read float32 values that lie 32 elements apart. How much of what "
        "the memory sends is used?",
        (
            Choice("All of it", "Memory comes in sectors of 32 bytes, whatever was asked for."),
            Choice(
                "An eighth",
                "Yes: each value of 4 bytes brings a sector of 32 along. Side by side, a sector serves eight lanes.",
                right=True,
            ),
            Choice("A thirty-second", "That would be so if a lane's sector were 128 bytes."),
        ),
    ),
    Question(
        "At one token, the fused router takes almost as long as at a thousand. Where does the time go?",
        (
            Choice("Into memory: one row is read very slowly", "One row is a few hundred bytes."),
            Choice(
                "Into launching",
                "Yes: some microseconds of host work for a kernel that is done in fewer. A CUDA graph launches many "
                "kernels at the price of about one.",
                right=True,
            ),
            Choice("Into the softmax", "Its arithmetic grows with the tokens; the time does not."),
        ),
    ),
)
