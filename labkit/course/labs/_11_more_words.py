"""Lab 11: the mistakes in weighing and in spending that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._11_counting_mistakes import (
    BytesByRoom,
    PickPrecision,
    more_than_all,
    nobody_refused,
    other_equals,
)
from labkit.course.labs._11_mistakes import accepted

_BYTES = {
    "parameters_only": "Only parameters were weighed. Packed weights are buffers: an optimizer shall not see them.",
    "buffers_only": "Only buffers were weighed. Parameters count as well.",
    "what_is_saved": "The state_dict was weighed. It leaves out buffers that are not saved, which are in memory all "
    "the "
    "same, and names a shared tensor twice.",
    "shared_twice": "Memory that two names share was counted twice. Remember storages by their address.",
    "views_apart": "Two tensors that are views of one memory were counted apart: they are two objects and one storage. "
    "Compare `untyped_storage().data_ptr()`.",
    "by_first_element": "Tensors were told apart by where they begin, `tensor.data_ptr()`. A view may begin in the "
    "middle of a storage: compare `untyped_storage().data_ptr()`.",
    "nobody_shares": "The tensors were added up one by one. Some of them share a storage, which is in memory once, and "
    "a view keeps all of it alive: remember each storage, and take its own `nbytes()`.",
    "top_only": "Nothing was found, since the model itself holds no tensor: its parts do, and theirs. Without "
    "`recurse=False` the names of all of them come.",
    "last_room": "Shared memory was put in the room of the *last* tensor that lies in it. The first one has it.",
    "view_for_storage": "A view was weighed. It keeps the whole storage alive: `tensor.untyped_storage().nbytes()`.",
    "four_bytes_each": "Four bytes were taken for every element. Bytes depend on the dtype; the storage knows its "
    "size.",
    "elements": "These are elements, not bytes.",
    "buffers_first": "Shared memory was put in the room of the buffer. Parameters come first.",
    "by_tensor": "The bytes are listed by tensor. Ask `room` where each name belongs, and add up.",
    "last_only": "Each room has the bytes of its last tensor only: add, do not replace.",
    "only_the_sum": "That is the sum. Which room weighs what is the question.",
    "empty_rooms": "A room came with 0 bytes because its memory was counted elsewhere. Leave such rooms out.",
}
BYTES_BY_ROOM = (
    *(Mistake(name, says, like=BytesByRoom(name)) for name, says in _BYTES.items()),
    Mistake("four_bytes_each", _BYTES["four_bytes_each"], like=BytesByRoom("four_bytes_each, by tensor")),
    Mistake("by_first_element", _BYTES["by_first_element"], like=BytesByRoom("by_first_element, the view")),
)

_PICK = {
    "smallest": "The tokens with the *smallest* features got the high precision.",
    "by_size": "Features were compared by size. A negative feature is a small one: a token that hardly needs it.",
    "first_come": "The first tokens got the high precision, whatever their features.",
    "rank_for_place": "`order < number` asks which *entries of the order* are small. The first entries of the order "
    "are "
    "the tokens: high[order[:number]] = True.",
    "of_high": "The share is budget / high: as if the cheap tokens cost nothing. n tokens cost n · high + (T − n) · "
    "low.",
    "low_free": "The share is (budget − low) / high. One token more costs high − low, since it no longer costs low.",
    "cheap_share": "That many tokens may be *cheap*. The share of dear ones is (budget − low) / (high − low).",
    "turned": "True and false are in each other's place.",
    "rounds": "The number was rounded, and with that the budget is exceeded at times. Round down.",
    "rounds_up": "The number was rounded up, so the budget is exceeded. Round down.",
    "threshold_lets_ties_in": "All tokens as good as the last one were let in, more than the budget pays. Of equal "
    "ones "
    "the earlier come first.",
    "threshold_keeps_ties_out": "Tokens as good as the first that was left out were left out too, and budget is left. "
    "Of equal ones the earlier come first.",
    "later_first": "Of equal features the later came first. `argsort(descending=True, stable=True)` keeps their order.",
    "accepts_less": "A budget below low_bits came through. Even with nobody in high precision it is exceeded: "
    "ValueError.",
    "numbers_of_tokens": "These are the chosen tokens' numbers. A mask was asked for, [T] bool.",
    "whole_numbers": "The mask is of whole numbers. Indexing with it would pick tokens 0 and 1: bool.",
}
_MORE = "With more bits than everybody costs there are more dear tokens than tokens: at most T."
_SEEN = {"accepts_less": accepted}
PICK_PRECISION = (
    *(Mistake(name, says, like=PickPrecision(name), when=_SEEN.get(name)) for name, says in _PICK.items()),
    Mistake("unbounded", _MORE, when=more_than_all),
    Mistake(
        "low_refused",
        "A budget of just low_bits was refused. It pays for everybody in low precision: a mask of False.",
        when=nobody_refused,
    ),
    Mistake(
        "any_of_equals",
        "As many tokens, and as good ones, but of equal features not the earlier ones: `topk` and an unstable sort "
        "take any of them. `argsort(descending=True, stable=True)` keeps their order.",
        when=other_equals,
    ),
)
