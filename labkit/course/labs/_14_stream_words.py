"""Lab 14: the mistakes with streams that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._14_relay_mistakes import Relay, blocks_left, goes_on, never_submitted
from labkit.course.labs._14_stream_mistakes import Events, UntilStop, asks_on, early, half_a_character, late

_EVENTS = {
    "a_chunk_is_an_event": "Every chunk was taken for an event. TCP knows no events: a chunk may hold half of one, or "
    "three. Keep what is left over until its line is whole.",
    "lines_of_a_chunk": "The lines of each chunk were read by themselves. A line may begin in one chunk and end in "
    "the next: keep the part after the last newline, and put the next chunk behind it.",
    "waits_for_the_end": "All events came at the end. A stream is read to have each of them at once: `yield` inside "
    "the loop over the chunks.",
    "chunks_decoded": "A chunk was decoded by itself, and a cut in the middle of a character raised an error. Split "
    "bytes into lines first; decode whole lines.",
    "chunks_decoded, ignoring": "A chunk was decoded with errors ignored, so a character that was cut is lost. Split "
    "bytes into lines first; decode whole lines.",
    "chunks_decoded, replacing": "A chunk was decoded by itself, and a character that was cut became �. Split bytes "
    "into lines first; decode whole lines.",
    "carriage_returns": "Lines may end in \\r\\n. The \\r is still there, so no line is ever empty, or it "
    "sticks to the "
    "data.",
    "other_line_ends": "`str.splitlines` splits at U+2028, at \\x0b, at \\x85 and others, which are text here. Only "
    '\\n and \\r\\n end a line: `split(b"\\n")` on bytes.',
    "every_line": "Every line of data was passed on by itself. They are one event, joined by newlines, and the empty "
    "line ends it.",
    "joined_without_newline": "The lines of an event are joined by a newline; they came out without.",
    "last_line_only": "Of an event with several lines of data only the last came out. Join them with newlines.",
    "all_spaces": "All spaces around the data are gone. One space after the colon belongs to the format; the others "
    "are data.",
    "space_kept": "The space after the colon stayed. One, if it is there, belongs to the format.",
    "six_bytes_cut": "Six characters were cut off every line of data. The space after the colon need not be there, "
    "and then a letter is gone.",
    "space_needed": "Lines without a space after `data:` were passed over. It need not be there.",
    "colon_needed": "A line that is just `data`, without a colon, is data too: an empty line of it.",
    "starts_with_data": "A field whose name only begins with `data` was taken for it. The name ends at the colon.",
    "last_colon": "The line was split at its last colon, or at all of them. Data may hold colons, and JSON always "
    "does: split at the first.",
    "all_fields": "Comments and other fields (event, id, retry) came out as data. Only lines named `data` are.",
    "empty_events": "An empty line without any data before it made an event. Nothing happens then: a comment and an "
    "empty line keep a connection alive.",
    "empty_data_lost": "An event whose data is empty is an event: a line of data came. Look at whether one came, not "
    "at whether there is text in it.",
    "half_an_event": "What was left at the end came out as an event. Without its empty line it is not whole: the "
    "connection broke.",
    "done_is_an_event": "[DONE] came out. It is no event of the answer but its end.",
    "reads_on": "After [DONE] more was asked for. A line that is kept alive never ends by itself: return.",
    "done_anywhere": "An answer in which [DONE] occurs was taken for its end. Compare the whole data.",
}
EVENTS = (
    *(Mistake(name.replace(", ", "_"), says, like=Events(name))
      for name, says in _EVENTS.items()),
    Mistake("chunks_decoded", _EVENTS["chunks_decoded"], when=half_a_character),
)  # fmt: skip

_STOPS = {
    "waits_for_the_end": "All text came at the end. What cannot belong to a stop any more has to go out at once, or "
    "nobody needs a stream.",
    "piece_by_piece": "Each piece was searched by itself. Tokens are cut where they please: a stop may begin in one "
    "and end in the next.",
    "holds_nothing": "Text went out that a stop then turned out to begin with. It cannot be called back: hold the "
    "longest end of the text that some stop begins with.",
    "fixed_tail": "As many letters were held as the longest stop has, less one, whatever they are. Hold only what "
    "some stop begins with; else every reader is that much behind.",
    "whole_tail": "Once a letter came that a stop begins with, nothing went out any more. When the next letters do "
    "not fit, let go of what can be no beginning.",
    "one_letter": "At most one letter was held. The longest beginning that fits has to be.",
    "shortest_beginning": "The shortest beginning was held. Several may fit, one inside the other: the longest has "
    "to be held, of all stops.",
    "first_stop_only": "Only beginnings of the first stop were held. Any of them may come.",
    "restarts": "When a letter did not fit, all that was held was let go. Its end may itself be a beginning: after "
    "`aa` of `aab`, one more `a` leaves `aa` held.",
    "stop_included": "The stop is in the answer. The text ends before it.",
    "text_before_lost": "The text in front of the stop, in the same piece or held before, is missing.",
    "tail_lost": "The answer ended without a stop, and what was held is missing. It was a beginning of nothing: let "
    "it go.",
    "reads_on": "After the stop more pieces were asked for. Each is a token that is computed for nobody: return.",
    "only_at_the_end": "A stop was seen only where a piece ends with it. It may lie in the middle.",
    "first_in_the_list": "The stop that comes first in the *list* was cut at. The one that is complete first counts.",
    "starts_first": "The stop that *begins* first was cut at. The one that is complete first counts: then the answer "
    "does not depend on how the text was cut into pieces.",
    "shorter_of_two": "Two stops were complete at the same letter, and the shorter was cut off. The longer counts.",
    "last_place": "The text was cut at the last place where a stop is. The first counts.",
}
STOPS = (
    *(Mistake(name, says, like=UntilStop(name)) for name, says in _STOPS.items()),
    Mistake("reads_on", _STOPS["reads_on"], when=asks_on),
    Mistake("holds_too_much", "The text is right in the end, and came later than it might: some of what was held could "
            "be no beginning of a stop any more.", when=late),
    Mistake("holds_too_little", "Text went out, and then belonged to a stop. Hold the longest end of the text that "
            "any stop begins with.", when=early),
)  # fmt: skip

_RELAY = {
    "only_when_it_ends": "Blocks stay held when the reader leaves: what stands after the loop is never reached then. "
    "The generator is closed at its `yield`; only `finally` is sure to run, and `cancel` only with its parentheses.",
    "only_after_errors": "Blocks stay held when the reader leaves. `except Exception` sees neither GeneratorExit nor "
    "CancelledError: both are above it. `finally` sees everything.",
    "only_when_closed": "Blocks stay held when the task is cancelled, or the engine fails: there are several ways to "
    "end, and GeneratorExit is one of them. `finally` is for all.",
    "only_when_cancelled": "Blocks stay held when the generator is closed, or the engine fails: CancelledError is one "
    "way to end. `finally` is for all.",
    "swallows_cancel": "Something was sent to a reader who has left. `except BaseException` and a bare `except` catch "
    "GeneratorExit and CancelledError too; catch what you can answer for, RuntimeError.",
    "swallows_cancel, quietly": "The task was cancelled, and went on as if nothing had happened: CancelledError was "
    "caught. Let it through; whoever cancelled waits for it.",
    "collects_first": "The engine had finished when the first event went out. Send each piece as it comes.",
    "no_done": "The end is not marked. `data: [DONE]` tells the reader that nothing is missing.",
    "no_json": "The text stands in the event as it is. An empty line in it would end the event: JSON keeps newlines "
    "inside.",
    "python_not_json": "The data is how Python shows a dict, with single quotes. That is no JSON: `json.dumps`.",
    "one_newline": "An event ends with an empty line, so with two newlines.",
    "no_data": "The line does not say that it is data: it begins with `data: `.",
    "error_gets_out": "The engine's error left the generator. The answer has begun, with status 200: nobody can send "
    "another status now. Send the error as the last event.",
    "error_hidden": "The engine failed, and the reader was told that the answer is complete. Send the error, and no "
    "[DONE].",
    "done_after_an_error": "After the error came [DONE], which says that the answer is complete. It is not.",
    "full_is_an_event": "A request that was refused became an event. Nothing has been sent yet, so the server can "
    "still say 429: `submit` belongs in front of the `try`.",
    "plain_message": "The error is a bare text. Clients read `error.message` and `error.type`.",
    "error_as_text": "The error's message came as text of the answer. Readers would take it for what the model said.",
    "error_not_wrapped": "Message and type stand at the top. They belong inside `error`.",
}
RELAY = (
    *(Mistake(name.replace(", ", "_"), says, like=Relay(name)) for name, says in _RELAY.items()),
    Mistake("swallows_cancel", _RELAY["swallows_cancel"], when=goes_on),
    Mistake("never_submitted", "A request that was refused has no answer to cancel, and the name is not set: put "
            "`submit` in front of the `try`.", when=never_submitted),
    Mistake("blocks_left", "Blocks stay held after the end. Whatever ends the generator, `finally` runs: cancel there.",
            when=blocks_left),
)  # fmt: skip
