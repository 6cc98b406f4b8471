"""Lab 13: the mistakes in counting, pruning and aligning that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs._13_more_mistakes import Align, EqualSteps, Prune
from labkit.course.labs._13_words import known


def same_expert_twice(failure: Failure) -> bool:
    """Whether a unit of the other expert came back more than once."""
    rows = failure.got[0]
    return len(rows.unique(dim=0)) < len(rows)


def other_equals(failure: Failure) -> bool:
    """Whether experts of the right use stayed, but among equals not those with the lower numbers."""
    rows, wanted = (value[0]["router.weight_ED"] for value in (failure.got, failure.expected))
    all_rows = failure.case.args[0]["router.weight_ED"]
    used_E = failure.case.args[1]
    numbers = [[int((all_rows == row).all(1).nonzero()[0]) for row in kept] for kept in (rows, wanted)]
    mine, right = (used_E[kept].sort().values for kept in numbers)
    return numbers[0] == sorted(set(numbers[0])) and bool((mine == right).all())


def refuses_all(failure: Failure) -> bool:
    """Whether keeping every expert was refused."""
    return failure.outcome.error_type == "ValueError" and failure.case.args[2] == len(failure.case.args[1])


EQUAL_STEPS = known(
    EqualSteps,
    {
        "counted_alike": "Reading and training were counted alike. The teacher only reads: one forward pass. The "
        "student has a backward pass, too, with two products for every one: three in all.",
        "teacher_free": "The teacher reads for nothing here. Its forward passes are what distilling costs.",
        "teacher_alone": "That is what the teacher's reading alone is worth. The student's own steps cost something, "
        "too.",
        "student_twice": "The student was counted twice. The backward pass alone is two forward passes, one for the "
        "gradient of the inputs and one for that of the weights: three in all.",
        "all_experts": "All experts of the teacher were counted. A token passes top_k of them: active parameters cost "
        "FLOPs, the others only memory.",
        "one_expert": "One expert was counted for each token; there are top_k.",
        "experts_forgotten": "The experts were left out: top_k of them belong to every token's work.",
        "head_left_out": "The head was left out. It is a product with every row of the vocabulary, and in a small "
        "model the largest one.",
        "embedding_counted": "The embedding was counted. Looking a row up multiplies nothing.",
        "nothing_shared": "What the teacher said was paid for again by every student in every epoch. From a cache it "
        "is paid once.",
        "epochs_ignored": "Epochs were left out: a cache that is read four times costs each reading a quarter.",
        "students_ignored": "Students were left out: each of them pays its share of one reading.",
        "shared_the_wrong_way": "Sharing made the teacher dearer. One reading is divided by students times epochs.",
        "epochs_the_wrong_way": "More epochs made the teacher dearer. In every epoch after the first what it said is "
        "read again, not said again: its cost is divided by the epochs.",
        "epochs_twice": "`steps` are those of all epochs together; they were multiplied by the epochs once more.",
        "own_steps_shared": "The student's own training was divided, too. Only the teacher's reading is shared.",
        "exchanged": "Student and teacher were exchanged: it is the student that trains (3) and the teacher that reads "
        "(1), and the steps to count are the student's.",
        "sum_for_product": "Students and epochs were added. Three students in four epochs use each reading twelve "
        "times.",
        "upside_down": "That is fewer steps than with the teacher. Without one every step is cheaper, so the same "
        "FLOPs buy more.",
        "rounded_up": "Rounded up: the last step is not paid for in full. Round down.",
        "rounded_early": "The ratio was rounded before it was multiplied by the steps. Multiply first, round last.",
        "not_whole": "A number of steps is whole: round down, with // or int(…).",
    },
)

PRUNE_LIKE = known(
    Prune,
    {
        "rows_kept": "Experts were cut and the router's rows were not, so it goes on choosing among all and its "
        "numbers mean others now. Cut its rows and its bias along.",
        "bias_kept": "The router's rows were cut, its selection bias was not. Every tensor of the router has an entry "
        "for each expert.",
        "experts_kept": "The router was cut and the experts were not: number 1 of the router is another than number 1 "
        "of the experts.",
        "down_kept": "Gate and up were cut, down was not. All of an expert's tensors go with it.",
        "bias_in_another_order": "The bias does not stand in the order of the rows.",
        "in_order_of_use": "Those that stay stand in the order of their use. Keep the order of their numbers, so that "
        "layers can be compared.",
        "first_ones": "The first ones were kept, whatever they are used for. Numbers mean nothing; sort by use.",
        "least_used": "The least used were kept.",
        "dropped_for_kept": "Those that should go were kept.",
        "those_above_average": "Experts above the average use were kept; how many that is, nobody knows before. "
        "Keep exactly `number`.",
        "higher_number_wins": "Between equals the higher number stayed. Say `stable=True` when sorting downwards, and "
        "the lower one does, on every machine.",
        "by_size": "Tensors were cut if their first dimension has as many entries as there are experts. The shared "
        "expert's may have so by chance; go by the name.",
        "equals_all_kept": "All that are used as much as the last one stayed, so equals made it more than `number`. "
        "Between equals the lower numbers stay.",
        "shared_cut": "Every tensor was cut, the shared expert's as well. It has no dimension of experts: cut what "
        "begins with router. or experts. only.",
        "zeroed": "Those that should go were set to zero. They still take memory, and a router row of zeros can win "
        "against negative logits.",
        "shared_dropped": "The shared expert's tensors are missing. It serves every token and stays as it is.",
        "top_k_kept": "A token chooses more experts than are left. The new top_k is at most `number`.",
        "top_k_is_number": "top_k became the number of experts left, so that every token goes to all. It stays, "
        "unless fewer are left.",
        "top_k_in_proportion": "top_k was cut in the same proportion as the experts. It stays, unless fewer are left.",
        "accepts_anything": "No experts, or more than there are, was accepted. Raise ValueError.",
    },
)

PRUNE = (
    *PRUNE_LIKE,
    Mistake(
        "equals_at_random",
        "Between equally used experts not the lower number stayed: `topk` and a sort that is not stable promise no "
        "order among equals. torch.sort(…, descending=True, stable=True).",
        when=other_equals,
    ),
    Mistake(
        "refuses_all",
        "Keeping all of them was refused. number = E is allowed, and leaves the layer as it is.",
        when=refuses_all,
    ),
)

ALIGN = (
    *known(
        Align,
        {
            "gate_without_up": "The gate's rows were moved and the up rows were not. A unit is a gate row, an up row "
            "and a down column; moved apart, the layer computes something else.",
            "up_without_gate": "The up rows were moved and the gate's were not. A unit is a gate row, an up row and a "
            "down column.",
            "down_kept": "The rows were moved and the columns of down were not: each unit now writes where another "
            "did.",
            "rows_kept": "Only down was moved. A unit is a gate row, an up row and a down column.",
            "wrong_axis": "down was reordered along its rows, which are the model's dimensions. Units are its columns.",
            "inverse": "The order was applied the other way round. order[place] = unit says which unit *comes to* a "
            "place, which is what indexing does: gate[order].",
            "halves_exchanged": "Gate and up changed places: the gate half comes first.",
            "interleaved": "Gate and up rows alternate now. The layer expects all gate rows, then all up rows.",
            "anchor_moved": "The anchor's units came back. The anchor stays; the other expert is reordered.",
            "roles_exchanged": "The anchor came back in the other's order. The anchor, the first argument, stays as it "
            "is; the other one is reordered.",
            "averaged": "The average of both came back. Averaging is for later: return the other expert, reordered.",
            "row_after_row": "Each place took its best in turn, from the first on, and a late one got what was left. "
            "The most alike pair of *all* goes first.",
            "gate_alone": "Units were compared by their gate rows alone; two that differ in up or down looked alike.",
            "up_alone": "Units were compared by their up rows alone.",
            "down_left_out": "The down columns were left out of the comparison. They say what a unit writes.",
            "down_alone": "Units were compared by what they write alone.",
            "cosine": "Units were normalised before the comparison. The inner products as they are make the distance "
            "between the experts small: it is ‖a‖² + ‖b‖² − 2·(sum of the pairs' products).",
            "distance": "Pairs were taken by distance. Small units are near everything; take inner products, whose sum "
            "decides the distance of the experts.",
            "least_alike": "The least alike units were paired.",
            "absolute": "Opposite units counted as alike. In an average they would cancel.",
            "by_norm": "Units were paired by their length. Which way they point decides.",
        },
    ),
    Mistake(
        "each_its_best",
        "Every place took its most alike unit, so some units came twice and others not at all. An order has each once: "
        "strike out a row and a column when a pair is taken.",
        like=Align("each_its_best"),
        when=same_expert_twice,
    ),
)
