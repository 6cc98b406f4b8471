"""Lab 15: what is said to each mistake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from labkit.course.judge import Mistake
from labkit.course.labs import _15_mistakes as made


def _known(answer: Callable[..., Any], says: dict[str, str]) -> tuple[Mistake, ...]:
    return tuple(Mistake(name, words, like=partial(answer, name)) for name, words in says.items())


CHOOSE = (
    *_known(made.choose_two, {
        "ready_ignored": "A replica whose health check fails was drawn. Draw among those that are ready only.",
        "drawn_twice": "The same replica can be drawn twice, and then there is no choice. Take the first away before "
        "the second is drawn.",
        "neighbour": "The second one is the first one's neighbour in the list. Then a slow replica always meets the "
        "same other one: draw it with v.",
        "least_loaded": "That is the least loaded of all. It asks everyone for every request; two are enough.",
        "one_choice": "Only one was drawn. That is random routing: its longest queue grows much faster.",
        "busier": "The busier of the two was taken.",
        "second_if_equal": "Of two that are equally loaded the first drawn is meant.",
        "lower_number_if_equal": "Of two that are equally loaded the lower number was taken. An idle fleet would send "
        "everything to its first replicas: take the first drawn.",
        "rounded": "The place was rounded to the nearest. Then the first one gets half its share, and the end of the "
        "list is passed: int(u · n).",
        "number_among_ready": "The number counts the ready ones only. The caller knows replicas by their place in "
        "`load`.",
        "load_for_place": "The load of the chosen one came back. The caller wants its place in `load`.",
        "nobody_is_none": "Where nobody is ready None came back. Somebody will use it as a place: raise ValueError, "
        "which becomes a 503.",
        "nobody_is_the_first": "Where nobody is ready the first replica was named. Its request would be lost: raise "
        "ValueError, which becomes a 503.",
    }),
    Mistake("alone_fails", "It fails where one replica is left. After the others have died, this is the one that "
            "matters: it gets the request.", when=made.alone_fails),
    Mistake("nobody_raises_another", "Where nobody is ready some other error came out, of an empty list. Say it: "
            "ValueError.", when=made.nobody_raises_another),
)  # fmt: skip

OWNER = (*_known(made.owner, {
    "no_bound": "A replica that is full was chosen. The bound is room · (all requests and this one) / replicas, "
    "rounded up; whoever has as many is passed over.",
    "may_be_full": "A replica that has as many as the bound was chosen: with this one it would have one more.",
    "new_one_left_out": "The new request was not counted. In an idle fleet the bound is then 0, and nobody has room: "
    "(sum + 1).",
    "rounded_early": "The share was rounded up before room was multiplied. Multiply first, round once: "
    "⌈room · all / replicas⌉.",
    "rounded_down": "The bound was rounded down. With room 1 it may then leave room for nobody: math.ceil.",
    "least_loaded": "That is the least loaded one. It is another one for each request, so no cache is found again.",
    "idlest_when_full": "When the owner is full, the idlest replica was taken. It is a different one each time; the "
    "one with the next best score is the same again.",
    "next_in_the_list": "When the owner is full, the next one in the list was taken. All that is too much for one then "
    "falls on one neighbour; by the next best score it is another one for each prefix.",
    "modulo": "A digest modulo the number of replicas: when one comes or goes nearly every prefix moves, and all "
    "caches are cold at once. Give each replica a score, and take the best.",
    "pythons_hash": "Python's hash of a text is another one in each process (PYTHONHASHSEED). Two routers would "
    "disagree.",
    "md5": "The digest is MD5's; SHA-256 was asked for, and two routers must agree.",
    "prefix_first": "The digest is of prefix + / + name. Name + / + prefix was asked for, and two routers must agree.",
    "run_together": "Name and prefix run together: replica r1 with prefix 2/x is r12 with /x. Put b\"/\" in between.",
    "name_alone": "The prefix is not in the digest: every request goes to the same replica.",
    "prefix_as_shown": "The prefix stands in the digest as Python shows it, with b'…' around it: f-strings do that to "
    "bytes. Turn the name into bytes instead: `name.encode()`.",
    "prefix_decoded": "The prefix was turned into text. It is the beginning of a prompt, cut at some byte, perhaps in "
    "the middle of a letter. Turn the name into bytes instead: `name.encode()`.",
    "lowest": "The lowest score was taken; the highest was asked for, and two routers must agree.",
    "anything_goes": "With room below 1 there may be nobody with room, and of no replicas none can be named. Raise "
    "ValueError.",
}), Mistake(
    "one_refused", "Room 1 was refused. It is a bound with nothing to spare, and somebody is always below it.",
    when=made.one_refused,
))  # fmt: skip

ETAG = (
    *_known(made.etag, {
        "whole_file": "That is the MD5 of the file. A store that got it in parts never sees the whole: it has the "
        "parts' digests.",
        "digest_of_all_bytes": "The number of parts is right, and the digest is of the file's bytes. It is of the "
        "parts' digests, one after the other.",
        "plain_if_one": "One part is a multipart upload too: its digest is digested again, and -1 follows.",
        "hex_joined": "The digests were joined as hexadecimal text. Their 16 bytes each are meant: `.digest()`.",
        "sha256": "The outer digest is SHA-256. S3's is MD5.",
        "sha256_of_parts": "The parts' digests are SHA-256. S3's are MD5.",
        "no_count": "A dash and the number of parts are missing. By them a reader knows that this is no MD5 of a file.",
        "bytes_for_count": "Behind the dash stands the size of a part. The number of parts is meant.",
        "underscore": "A dash stands before the number of parts.",
        "last_part_lost": "The last part, which is not full, was left out.",
        "one_part_too_many": "A part too many: where the file ends with a whole part, no empty one follows.",
        "padded": "The last part was filled up. It is sent as short as it is.",
        "empty_has_no_part": "An empty file has one part, of no byte: an upload needs at least one.",
        "any_part": "Parts of no byte never end. Raise ValueError.",
        "below_zero_let_in": "A part below 0 was let in. At 0 `range` complains by itself; below it there are no "
        "steps at all, and nothing of the file is digested: ask for part < 1.",
    }),
    Mistake("miscounted", "The digest is right, and the number of parts is not. Count those that were digested: "
            "len // part + 1 is one too many where the last part is full.", when=made.miscounted),
)  # fmt: skip

PATHS = (
    *_known(made.safe_path, {
        "believed": "Names were let in that must be refused. A manifest is written by whoever can write to the store: "
        "look at every part, wherever it stands, and at every letter.",
        "dots_searched": "Two dots were looked for anywhere, and a slash in front. That refuses a..b.bin, and lets in "
        "./x, x//y and x/: look at whole parts.",
        "pathlibs_parts": "Path(name).parts are mended already: empty parts and single dots are gone, so shards//x and "
        "./config.json got in. Look at name.split(\"/\").",
        "resolved": "The path was resolved and then compared. That keeps it inside, but shards/../config.json and "
        "config.json are then the same file; and a relative folder, or a link, becomes another one. Refuse the name.",
        "decoded": "%2e became a dot. In a file's name it is three letters, and nothing is to be mended.",
        "backslash_mended": "Backslashes became slashes in silence. Nothing is to be mended: refuse such a name.",
        "colon_after_one_letter": "A colon was looked for behind the first letter only. On Windows x:y is also a "
        "second stream of the file x, one that dir does not show: refuse colons anywhere.",
        "joined": "`os.path.join` with a name that begins with / forgets the folder: /etc/passwd comes out.",
        "last_part_only": "Everything but the last part was thrown away. shards/a and old/a become one file, and a"
        " bad name a good one, in silence.",
        "ups_taken_out": "`../` was taken out. Out of ....// that leaves ../ ; and a name that has to be mended is no "
        "name to believe. Refuse it.",
        "normalised": "The path was made normal and then compared. That keeps it inside, but shards/../config.json and "
        "config.json are then the same file, checked under one name and overwritten under the other. Refuse it.",
        "beginnings_compared": "Beginnings of texts were compared: /cache/models-old begins with /cache/models. Compare"
        " with the / at the end, or look at the parts.",
        "begins_with_up": "Only the beginning was looked at. Going up in the middle goes out as well.",
        "roots_taken_off": "Slashes in front were taken off in silence. It is a mistake or an attack: refuse it.",
        "none_for_bad": "None came back for a bad name. Somebody will join it to something: raise ValueError.",
        "dots_let_in": "A part that is one dot got in: two names for the same file.",
        "ups_let_in": "A part .. got in: it leads out.",
        "empty_let_in": "A part without a name got in: //server, shards/, or nothing at all. The first leads out, the "
        "others name no file.",
        "backslash_let_in": "A backslash got in. On Windows ..\\ leads out, and who writes the manifest knows where you"
        " run it better than you do.",
        "drive_let_in": "A colon got in: C:config.json lies on another drive of Windows.",
        "zero_let_in": "A zero byte got in. What is written in C stops reading there, and sees another name.",
        "systems_own": "Backslash, colon and zero byte got in. They lead out on other systems than this one.",
    }),
    Mistake("hidden_refused", "A name that begins with a dot was refused. .gitattributes and ..x are fine names: only "
            "the whole parts . and .. are refused.", when=made.hidden_refused),
    Mistake("letters_refused", "A fine name was refused for a space, an umlaut or a percent sign. Only a backslash, a "
            "colon and a zero byte are not let in.", when=made.letters_refused),
    Mistake("two_dots_anywhere", "Two dots anywhere were refused. a..b.bin is a fine name: look at whole parts.",
            when=made.dots_refused),
    Mistake("one_name", "Names with folders in them were refused. shards/model-00002.safetensors is a good one.",
            when=made.folders_refused),
)  # fmt: skip

PAGES = (
    *_known(made.pages, {
        "long_alone": "Only the long window was asked. It goes on firing for an hour after everything is well.",
        "short_alone": "Only the short window was asked. One failure in a quiet night wakes somebody.",
        "either_window": "One of the two windows was enough. Both must burn: the long one says that it matters, the "
        "short one that it still goes on.",
        "every_rule": "All rules had to burn. Each is for another kind of trouble: one is enough.",
        "first_rule_only": "Only the first rule was asked.",
        "last_rule_only": "Only the last rule was asked.",
        "rules_mixed": "The long window of one rule and the short one of another were enough. Both windows of the same "
        "rule must burn.",
        "at_the_limit": "Just at the limit is not above it.",
        "factor_forgotten": "The factor was left out: everything above the budget itself wakes somebody.",
        "budget_forgotten": "The ratio was compared with the factor alone. A burn rate is a ratio in budgets.",
        "divided": "The budget was divided by the factor. Burning fast is a high ratio: multiply.",
        "a_minute_more": "The windows are a minute too long.",
        "now_left_out": "The present minute is not in the windows. It is what the alert is about.",
        "since_the_start": "The windows reach back to the beginning. An outage is then lost in a good month.",
        "waits_until_full": "Nothing fires until the window is full (or a slice had a negative start). A server that "
        "starts broken would be quiet for an hour: take the minutes that there are.",
        "mean_of_ratios": "The minutes' ratios were averaged. A minute with one request then counts as much as one "
        "with a thousand: sum first, divide then.",
        "failures_a_minute": "Failures were divided by minutes. How bad they are depends on how many asked.",
        "of_the_answered": "Failures were divided by what went well. The ratio is of all that asked.",
        "silence_fires": "A window in which nobody asked fired. Nothing has failed there.",
        "never_ends": "Once it has fired it fires for ever. Somebody has to see that it is over.",
        "beginnings_only": "Only the minute at which it begins to fire was told. Say True for as long as it burns.",
        "now_only": "Only the last minute's answer came back. One for each minute was asked for.",
    }),
    Mistake("silence_raises", "It divides by zero where nobody asked. There nothing burns.", when=made.silence_raises),
)  # fmt: skip
