"""Who may run now, and who is to blame: the books alone, without a process."""

from __future__ import annotations

import random

import pytest

from labkit.serve.engine import Delta, SamplingParams, Stream
from labkit.serve.worker.flight import Flight, Request
from labkit.serve.worker.policy import PARDON, Policy
from labkit.serve.worker.watch import Watch


def flight(count: int) -> Flight:
    made = Flight()
    for number in range(count):
        made.add(Request(number, (1,), SamplingParams(), Stream(str(number))))
    return made


def numbers(requests) -> list[int]:
    return [request.number for request in requests]


def end(books: Flight, *ids: str) -> None:
    for id in ids:
        books.sent[id].stream.end("stop")
        books.remove(id)


def test_all_go_at_once_and_again_after_one_death():
    books = flight(4)
    assert numbers(books.due()) == [0, 1, 2, 3]
    assert books.due() == []
    end(books, "1")
    assert books.died() == []
    assert numbers(books.due()) == [0, 2, 3]


def test_after_two_deaths_they_run_alone_before_anybody_else():
    books = flight(3)
    for _ in range(2):
        books.due()
        assert books.died() == []
    books.add(Request(3, (1,), SamplingParams(), Stream("3")))
    for at in range(3):
        assert numbers(books.due()) == [at]
        assert books.due() == []
        end(books, str(at))
    assert numbers(books.due()) == [3]


def test_who_kills_alone_is_the_one():
    books = flight(3)
    for _ in range(2):
        books.due()
        books.died()
    books.due()
    assert numbers(books.died()) == [0]
    assert numbers(books.due()) == [1]
    assert books.sent["1"].deaths == 2


def test_one_that_gets_well_beyond_where_it_fell_is_pardoned_once():
    books = flight(2)
    request = books.held["0"]
    for again in (False, True):
        while not request.suspect:
            books.due()
            request.take(Delta("0", 0, (5, 5)))
            books.died()
        assert numbers(books.due()) == [0]
        for _ in range(PARDON - 1):
            request.take(Delta("0", 0, (5,)))
        assert request.suspect
        assert books.due() == []
        request.take(Delta("0", 0, (5,)))
        assert request.suspect is again
    end(books, "0")
    assert numbers(books.due()) == [1]


def test_one_that_was_held_back_is_no_suspect():
    books = flight(1)
    for _ in range(2):
        books.due()
        books.died()
    books.due()
    books.add(Request(1, (1,), SamplingParams(), Stream("1")))
    assert books.due() == []
    assert numbers(books.died()) == [0]
    assert books.held["1"].deaths == 0


def test_no_suspect_joins_one_that_was_cancelled_until_it_has_gone():
    books = flight(2)
    for _ in range(2):
        books.due()
        books.died()
    assert numbers(books.due()) == [0]
    books.sent["0"].stream.end("cancelled")
    assert books.due() == []
    assert books.died() == []
    assert numbers(books.due()) == [1]
    assert numbers(books.open) == [1]


def test_whoever_kills_is_found_and_only_they():
    """Any number of killers among any company, with arrivals in between: each is blamed once, and all others end."""
    draw = random.Random(0)
    for _ in range(200):
        books, killers = Flight(), {str(number) for number in range(30) if draw.random() < 0.2}
        arrivals, ended, blamed, deaths = list(range(30)), set(), set(), 0
        while len(ended) + len(blamed) < 30:
            for number in [arrivals.pop(0) for _ in range(min(len(arrivals), draw.randrange(4)))]:
                books.add(Request(number, (1,), SamplingParams(), Stream(str(number))))
            books.due()
            running = list(books.sent)
            if set(running) & killers and draw.random() < 0.7:
                blamed |= {request.id for request in books.died()}
                deaths += 1
            elif good := [id for id in running if id not in killers]:
                end(books, one := draw.choice(good))
                ended.add(one)
        assert blamed == killers
        assert deaths <= 3 * len(killers)


def test_what_was_delivered_goes_along_and_what_has_ended_does_not():
    stream = Stream("5", n=3)
    request = Request(5, (1, 2), SamplingParams(n=3), stream)
    assert request.command()[-1] is None
    request.take(Delta("5", 0, (7,)))
    request.take(Delta("5", 1, (8, 9), finish_reason="stop"))
    request.take(Delta("5", 1, (10,)))
    request.deaths = 1
    assert request.command() == ("run", "5", (1, 2), request.params, 0, "", {0: (7,), 2: ()})


def test_what_no_load_counts_yet_is_counted():
    books = flight(3)
    assert books.waiting() == (3, 3 * 17)
    books.due()
    assert books.waiting() == (3, 3 * 17)
    books.read(2)
    assert books.waiting() == (1, 17)
    books.died()
    assert books.waiting() == (3, 3 * 17)


@pytest.mark.parametrize("working", [True, False])
def test_standing_still_is_a_hang_only_with_work(working):
    watch = Watch(Policy(patience=1))
    watch.ready()
    watch.working = working
    said = []
    for _ in range(8):
        watch.heard()
        watch.turned(1)
        said.append(watch.tick(0.2))
    assert any(said) is working


def test_turning_is_progress():
    watch = Watch(Policy(patience=1))
    watch.ready()
    watch.working = True
    for turns in range(20):
        watch.heard()
        watch.turned(turns)
        assert watch.tick(0.2) == ""


def test_a_watcher_that_slept_itself_holds_it_against_nobody():
    watch = Watch(Policy(patience=1))
    watch.ready()
    watch.working = True
    assert watch.tick(1_000) == ""
