"""One step at a time: who moves, who starts, who has to go, and what the caller did wrong."""

from __future__ import annotations

import pytest

from labkit.serve.scheduler import Full, Limits, Scheduler, Sequence, Status


def limits(**changes) -> Limits:
    return Limits(**{"num_blocks": 8, "block_size": 2, "max_tokens_per_step": 8, "max_sequences": 4} | changes)


def sequence(id: str, prompt=3, max_tokens=4, **changes) -> Sequence:
    """A prompt of so many tokens that nobody else has, or of these."""
    tokens = tuple(ord(id[0]) * 100 + at for at in range(prompt)) if isinstance(prompt, int) else prompt
    return Sequence(id, tokens, max_tokens, **changes)


def scheduler(*sequences: Sequence, **changes) -> Scheduler:
    made = Scheduler(limits(**changes))
    for one in sequences:
        made.add(one)
    return made


def turn(it: Scheduler, now: float = 0.0, token: int = 0):
    """One step, with the same token for everybody; who has all its tokens ends."""
    step = it.schedule(now)
    if step:
        it.update(step, {chunk.id: token for chunk in step.chunks if chunk.samples})
        for chunk in step.chunks:
            if chunk.id in it and len(it[chunk.id].produced) == it[chunk.id].max_tokens:
                it.finish(chunk.id)
    it.check()
    return step


def moves(step) -> list[tuple[str, int, int, bool]]:
    return [(chunk.id, chunk.start, len(chunk.tokens), chunk.samples) for chunk in step.chunks]


# --- what a step holds


def test_a_long_prompt_is_cut_and_decoding_goes_on_meanwhile():
    it = scheduler(sequence("a", 3), sequence("b", 10, 2), max_tokens_per_step=4)
    assert moves(turn(it)) == [("a", 0, 3, True), ("b", 0, 1, False)]
    assert moves(turn(it)) == [("a", 3, 1, True), ("b", 1, 3, False)]
    assert moves(turn(it)) == [("a", 4, 1, True), ("b", 4, 3, False)]
    assert moves(turn(it)) == [("a", 5, 1, True), ("b", 7, 3, True)]
    assert moves(turn(it)) == [("b", 10, 1, True)]
    assert not turn(it)
    assert it.load().finished == 2


def test_chunks_carry_the_tokens_and_the_whole_table():
    it = scheduler(sequence("a", (5, 6, 7, 8, 9)), max_tokens_per_step=4)
    (first,) = turn(it, token=3).chunks
    (second,) = turn(it, token=3).chunks
    (third,) = turn(it, token=3).chunks
    assert (first.tokens, second.tokens, third.tokens) == ((5, 6, 7, 8), (9,), (3,))
    assert first.blocks == second.blocks == third.blocks == (0, 1, 2)
    assert turn(it).chunks[0].blocks == (0, 1, 2, 3)


def test_decoding_comes_first_in_a_step_even_if_it_arrived_later():
    it = scheduler(
        sequence("a", 7, 2, arrival=1.0), sequence("b", 1, arrival=2.0), max_tokens_per_step=4, num_blocks=16
    )
    turn(it)
    turn(it)
    it.add(sequence("c", 6, arrival=0.0))
    assert [chunk.id for chunk in turn(it).chunks] == ["a", "b", "c"]
    assert moves(turn(it))[0][0] == "b"


def test_no_more_sequences_run_than_may():
    it = scheduler(*(sequence(name, 1, 2) for name in "abcde"), max_sequences=2)
    assert [chunk.id for chunk in turn(it).chunks] == ["a", "b"]
    assert [chunk.id for chunk in turn(it).chunks] == ["a", "b"]
    assert [chunk.id for chunk in turn(it).chunks] == ["c", "d"]


# --- order


def test_a_level_of_priority_is_worth_so_many_seconds():
    it = scheduler(
        sequence("a", arrival=0.0), sequence("b", arrival=4.0, priority=-1), sequence("c", arrival=6.0, priority=-1),
        sequence("d", arrival=1.0), patience=5.0, max_sequences=1,
    )  # fmt: skip
    order = []
    while step := turn(it):
        order += step.cached
    assert order == ["b", "a", "c", "d"]


def test_those_of_low_priority_are_served_under_a_stream_of_high_priority():
    it = scheduler(sequence("low", 1, 1, priority=2), max_sequences=1, patience=5.0, max_waiting=10_000)
    served = []
    for now in range(100):  # one arrives for each that can be served, always with precedence
        it.add(sequence(f"high {now}", 1, 1, arrival=float(now), priority=0))
        served += turn(it, float(now)).cached
    assert served.index("low") == 10  # behind those of the first 2 levels × 5 s


def test_nobody_small_overtakes_who_stands_in_front():
    it = scheduler(sequence("a", 8, 5), sequence("big", 10, 2), sequence("c", 1, 1))
    turn(it)
    started = [turn(it).cached for _ in range(4)]
    assert started == [{}] * 4
    it.cancel("big")
    assert turn(it).cached == {"c": 0}


def test_equal_arrivals_go_in_the_order_in_which_they_were_added():
    it = scheduler(sequence("b"), sequence("a"), max_sequences=1)
    assert moves(turn(it))[0][0] == "b"


# --- the pool is too small


def test_the_last_one_makes_room_and_comes_back():
    it = scheduler(sequence("a", 4, 5), sequence("b", 4, 5), num_blocks=5, reserve=0, reuse_prefixes=False)
    turn(it)
    assert [turn(it).preempted for _ in range(2)] == [("b",), ()]
    b = it["b"]
    assert (b.status, b.blocks, b.num_computed, b.preemptions, b.produced) == (Status.WAITING, (), 0, 1, [0])
    steps = []
    while step := turn(it):
        steps.append(step)
    assert ("b", 0, 5, True) in [move for step in steps for move in moves(step)]  # its own token is computed again
    assert it.load().preemptions == 1
    assert it.load().finished == 2
    assert all("b" not in step.cached for step in steps), "the first start only is told"


def test_who_was_preempted_finds_what_nobody_took_meanwhile():
    it = scheduler(sequence("a", 4, 5), sequence("b", 4, 5), num_blocks=5, reserve=0)
    turn(it)
    assert turn(it).preempted == ("b",)  # for the one block that "a" needs
    it.cancel("a")
    step = turn(it)
    assert moves(step) == [("b", 4, 1, True)]  # its end went first, and was no full block
    assert it.load().cached_tokens == 4


def test_a_reserve_keeps_new_ones_out_until_running_ones_have_room():
    for reserve, started in ((0, 2), (1, 2), (2, 1)):
        it = scheduler(sequence("a", 4, 5), sequence("b", 4, 5), num_blocks=5, reserve=reserve)
        assert len(turn(it).chunks) == started


def test_the_whole_pool_is_enough_for_one():
    it = scheduler(sequence("a", 7, 10), sequence("b", 7, 10), num_blocks=8)
    while turn(it):
        pass
    assert it.load().finished == 2


def test_nobody_starts_in_a_step_that_had_to_preempt():
    it = scheduler(sequence("a", 4, 5), sequence("b", 6, 3, arrival=9.0), num_blocks=5, reserve=0)
    turn(it)
    it.add(sequence("c", 1, 1, arrival=1.0))  # in front of "b", for which it had no place
    assert (step := turn(it)).preempted == ("b",)
    assert step.cached == {}
    assert turn(it).cached == {"c": 0}


def test_who_goes_may_free_nothing_but_leave_a_block_to_one():
    it = scheduler(sequence("a", 3, 2), num_blocks=2)
    step = it.schedule()
    it.fork("a", ["b"])
    it.update(step, {"a": 1, "b": 1})
    step = turn(it)
    assert (step.preempted, step.copies, moves(step)) == (("b",), (), [("a", 3, 1, True)])


# --- what is found again


def test_a_common_beginning_is_computed_once():
    it = scheduler(
        sequence("a", (1, 2, 3, 4, 5), 1), sequence("b", (1, 2, 3, 4, 6), 1), sequence("c", (1, 2, 3, 4), 1),
        max_tokens_per_step=10,
    )  # fmt: skip
    assert turn(it).cached == {"a": 0, "b": 0}  # nobody finds what is being computed
    step = turn(it)
    assert (step.cached, moves(step)) == ({"c": 2}, [("c", 2, 2, True)])  # the last token's logits are needed
    assert (it.load().queried_tokens, it.load().cached_tokens) == (14, 2)


@pytest.mark.parametrize("change", [{"salt": "tenant"}, {"reuse": False}])
def test_some_find_nothing(change):
    it = scheduler(sequence("a", (1, 2, 3), 1))
    turn(it)
    it.add(sequence("b", (1, 2, 3), 1, **change))
    it.add(sequence("c", (1, 2, 3), 1))
    assert turn(it).cached == {"b": 0, "c": 2}


def test_what_was_produced_is_found_by_a_prompt_that_goes_on_from_it():
    it = scheduler(sequence("a", (1, 2, 3), 4))
    while turn(it, token=9):
        pass
    it.add(sequence("b", (1, 2, 3, 9, 9, 9, 9, 4), 1))
    assert turn(it).cached == {"b": 6}  # the last 9 was never computed


def test_nothing_is_found_where_reuse_is_off():
    it = scheduler(sequence("a", (1, 2, 3), 1), sequence("b", (1, 2, 3), 1), reuse_prefixes=False, max_sequences=1)
    assert (turn(it).cached, turn(it).cached, it.load().kept_blocks) == ({"a": 0}, {"b": 0}, 0)


def test_what_turned_out_wrong_is_found_by_nobody():
    it = scheduler(sequence("a", (1, 2, 3), 4))
    turn(it)
    it.finish("a", forget=True)
    it.add(sequence("b", (1, 2, 3), 1))
    assert turn(it).cached == {"b": 0}


def test_what_turned_out_wrong_in_this_step_is_never_named():
    it = scheduler(sequence("a", (1, 2, 3), 4), sequence("b", (4, 5, 6), 4))
    step = it.schedule()
    it.finish("a", forget=True)
    it.update(step, {"b": 0})
    it.check()
    it.add(sequence("c", (1, 2, 3), 1))
    assert turn(it).cached == {"c": 0}


# --- forks


def test_forks_share_until_they_write():
    it = scheduler(sequence("a", (1, 2, 3), 3))
    step = it.schedule()
    it.fork("a", ["b", "c"])
    it.update(step, {"a": 7, "b": 8, "c": 9})
    it.check()
    assert it["a"].blocks == it["b"].blocks == it["c"].blocks == (0, 1)
    step = it.schedule()
    assert step.copies == ((1, 2), (1, 3))  # the last one writes in place
    assert [(chunk.id, chunk.tokens, chunk.blocks) for chunk in step.chunks] == [
        ("a", (7,), (0, 2)), ("b", (8,), (0, 3)), ("c", (9,), (0, 1)),
    ]  # fmt: skip
    it.update(step, {"a": 1, "b": 1, "c": 1})
    it.check()
    assert turn(it).copies == ()
    assert it.load().finished == 3
    assert it.pool.held == 0


def test_forks_without_a_place_wait_with_their_token():
    it = scheduler(sequence("a", (1, 2, 3, 4, 5), 3), max_sequences=2)
    step = it.schedule()
    it.fork("a", ["b", "c"])
    it.update(step, {"a": 7, "b": 8, "c": 9})
    assert (it["c"].status, it["c"].produced, it["c"].blocks) == (Status.WAITING, [9], ())
    turn(it)
    turn(it)
    assert moves(turn(it)) == [("c", 4, 2, True)]


def test_forks_come_with_all_that_was_produced():
    it = scheduler(sequence("a", (1, 2, 3), 5))
    turn(it, token=4)
    turn(it, token=5)
    it.fork("a", ["b"])
    assert it["b"].produced == [4, 5]
    assert moves(turn(it)) == [("a", 4, 1, True), ("b", 4, 1, True)]


# --- who goes


def test_a_client_that_leaves_frees_its_blocks_at_once():
    it = scheduler(sequence("a"), sequence("b"), sequence("c"), max_sequences=2)
    step = it.schedule()
    assert it.pool.held == 4
    assert it.cancel("a")
    assert it.cancel("c")
    assert it.pool.held == 2
    it.check()
    it.update(step, {"b": 0})
    assert not it.cancel("a")
    assert (it.load().cancelled, it.load().waiting, it.load().running) == (2, 0, 1)
    assert it.pool.find(Sequence("", it["b"].prompt, 1).name_blocks(1, 2)) != []
    assert "a" not in it


def test_an_id_may_be_used_again_while_its_old_step_runs():
    it = scheduler(sequence("a"))
    step = it.schedule()
    it.cancel("a")
    it.add(sequence("a", 5))
    it.update(step, {})
    it.check()
    assert it["a"].produced == []
    assert moves(turn(it)) == [("a", 0, 5, True)]


def test_after_a_crash_all_begin_again_with_what_they_had():
    it = scheduler(sequence("a"), sequence("b"))
    turn(it, token=6)
    it.schedule()
    assert it.reset() == ["a", "b"]
    it.check()
    assert (it["a"].produced, it.pool.held, it.pool.kept) == ([6], 0, 0)
    assert moves(turn(it)) == [("a", 0, 4, True), ("b", 0, 4, True)]


# --- what is refused


def test_what_can_never_run_is_refused():
    it = scheduler(max_context=20)
    with pytest.raises(ValueError, match="at most 20 are served"):
        it.add(sequence("a", 10, 11))
    with pytest.raises(ValueError, match="never fit into 8 blocks of 2, 16 positions"):
        it.add(sequence("a", 10, 8))
    with pytest.raises(ValueError, match="at most 20"):
        it.add(sequence("a", 10, 10**9))
    it.add(sequence("a", 10, 7))
    assert len(it) == 1


def test_a_full_queue_refuses_by_number_and_by_tokens():
    it = scheduler(sequence("a", 9, 5), max_waiting=2, max_waiting_tokens=12)  # into an empty queue everything goes
    with pytest.raises(Full, match="1 sequences of 14 tokens wait"):
        it.add(sequence("b", 1, 1))
    turn(it)
    it.add(sequence("b", 1, 1))
    it.add(sequence("c", 1, 1))
    with pytest.raises(Full, match="2 sequences"):
        it.add(refused := sequence("d", 1, 1))
    turn(it)
    it.check()
    it.add(refused)  # the same one may try again


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ()}, "empty prompt"),
        ({"prompt": (1, -1)}, "no token id"),
        ({"prompt": (1, 2.0)}, "no token id"),
        ({"prompt": (1, True)}, "no token id"),
        ({"prompt": (1, 1 << 63)}, "no token id"),
        ({"max_tokens": 0}, "max_tokens of sequence 'a' is 0"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"priority": 101}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"arrival": float("nan")}, "arrival"),
    ],
)
def test_a_sequence_checks_itself(change, words):
    with pytest.raises(ValueError, match=words):
        sequence("a", **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"block_size": 2.0}, "block_size is 2.0"),
        ({"max_sequences": 9}, "raise the one or lower the other"),
        ({"max_context": 1}, "max_context is 1"),
        ({"max_waiting": True}, "max_waiting is True"),
        ({"max_waiting_tokens": 0}, "max_waiting_tokens is 0"),
        ({"reserve": -1}, "reserve is -1"),
        ({"patience": float("inf")}, "patience is inf"),
        ({"patience": "long"}, "patience is 'long'"),
        ({"reuse_prefixes": 1}, "reuse_prefixes is 1"),
    ],
)
def test_limits_check_themselves(change, words):
    with pytest.raises(ValueError, match=words):
        limits(**change)


def test_the_callers_mistakes_are_told_and_change_nothing():
    it = scheduler(sequence("a"), sequence("b", 12, 2), max_tokens_per_step=5, num_blocks=16)
    with pytest.raises(ValueError, match="waits or runs already"):
        it.add(sequence("a"))
    with pytest.raises(ValueError, match="added before"):
        it.add(it["a"])
    with pytest.raises(ValueError, match="no sequence 'x'"):
        it.finish("x")
    with pytest.raises(ValueError, match="has not computed its prompt"):
        it.fork("a", ["c"])
    step = it.schedule()
    with pytest.raises(ValueError, match="step 1 is in flight"):
        it.schedule()
    with pytest.raises(ValueError, match="the token of sequence 'a' is None"):
        it.update(step, {})
    with pytest.raises(ValueError, match=r"the token of sequence 'a' is 1.5"):
        it.update(step, {"a": 1.5})
    with pytest.raises(ValueError, match="tokens for 'b', of which no chunk samples"):
        it.update(step, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="has not computed its prompt"):
        it.fork("b", ["c"])
    with pytest.raises(ValueError, match="given twice"):
        it.fork("a", ["c", "c"])
    with pytest.raises(ValueError, match="'b' waits or runs already"):
        it.fork("a", ["c", "b"])
    it.check()
    it.update(step, {"a": 1})
    with pytest.raises(ValueError, match="not in flight"):
        it.update(step, {"a": 1})
    assert (it["a"].num_computed, it["b"].num_computed, len(it)) == (3, 2, 2)


def test_who_has_all_its_tokens_must_be_finished():
    it = scheduler(sequence("a", 3, 1))
    step = it.schedule()
    it.update(step, {"a": 1})
    step = it.schedule()
    with pytest.raises(ValueError, match="has its 1 tokens; call finish"):
        it.update(step, {"a": 1})


def swap(it: Scheduler) -> None:
    it.running.items.reverse()


def hold_while_waiting(it: Scheduler) -> None:
    it.waiting.items[0].num_computed = 1


def lose_one(it: Scheduler) -> None:
    del it.sequences["c"]


def miscount(it: Scheduler) -> None:
    it.waiting_tokens += 1


def hold_twice(it: Scheduler) -> None:
    it["a"].blocks = it["a"].blocks[:1] * 2


def run_ahead(it: Scheduler) -> None:
    it["a"].num_computed = 9


def lie(it: Scheduler) -> None:
    it["a"].status = Status.FINISHED


def rename(it: Scheduler) -> None:
    it["a"].digests[0] = b"other"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swap, "out of order"), (hold_while_waiting, "waits and holds"), (lose_one, "in no line"),
        (miscount, "counted wrongly"), (hold_twice, "holds a block twice"), (run_ahead, "too few blocks"),
        (lie, "says otherwise"), (rename, "names its blocks wrongly"),
    ],
)  # fmt: skip
def test_broken_books_are_noticed(spoil, words):
    it = scheduler(sequence("a"), sequence("b"), sequence("c"), max_sequences=2)
    turn(it)
    spoil(it)
    with pytest.raises(RuntimeError, match=words):
        it.check()
