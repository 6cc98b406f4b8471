"""The block pool: who holds what, what is found again, what goes first, and books that notice when they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labkit.serve.cache.blocks import BlockPool, chain, root


def names(*blocks: tuple[int, ...], salt: str = "") -> list[bytes]:
    found = [root(salt)]
    for block in blocks:
        found.append(chain(found[-1], block))
    return found[1:]


def filled(pool: BlockPool, *blocks: tuple[int, ...]) -> list[int]:
    held = pool.allocate(len(blocks))
    for block, name in zip(held, names(*blocks), strict=True):
        pool.keep(block, name)
    return held


def test_a_name_stands_for_all_tokens_up_to_the_end_of_the_block():
    first, second = names((1, 2), (3, 4))
    assert second not in names((3, 4), (3, 4), (2, 1))
    assert names((1, 2))[0] == first != names((1, 2), salt="other")[0]
    assert len({first, second, root(), root("other")}) == 4
    assert root("\ud800") != root()  # a salt from a broken string is no error


def test_empty_blocks_go_first_then_kept_ones_the_longest_unused_first():
    pool = BlockPool(5, 2)
    old, new = filled(pool, (1, 1), (2, 2)), filled(pool, (3, 3))
    pool.release(old)
    pool.release(new)
    assert (pool.free, pool.kept, pool.held, pool.evictions) == (5, 3, 0, 0)
    assert not set(pool.allocate(2)) & {*old, *new}
    assert pool.allocate(1) == [old[1]]  # the end of a prefix before its beginning
    assert pool.find(names((1, 1), (2, 2))) == [old[0]]
    assert pool.allocate(2) == [old[0], new[0]]
    assert (pool.evictions, pool.free, pool.find(names((3, 3)))) == (3, 0, [])
    pool.check([[0, 1, 2, 3, 4]])


def test_what_was_used_again_goes_later():
    pool = BlockPool(2, 1)
    for block in filled(pool, (1,)) + pool.allocate(1):
        pool.release([block])
    (found,) = pool.find(names((1,)))
    other = pool.allocate(1)
    pool.keep(other[0], names((2,))[0])
    pool.release(other)
    pool.share([found])
    pool.release([found])
    assert pool.allocate(2) == [*other, found]


def test_found_blocks_are_held_only_once_shared():
    pool = BlockPool(3, 2)
    blocks = filled(pool, (1, 2), (3, 4))
    pool.release(blocks)
    found = pool.find(names((1, 2), (3, 4), (5, 6)))
    assert found == blocks
    assert (pool.free, pool.free_without(found)) == (3, 1)
    pool.share(found)
    pool.share(found[:1])
    assert (pool.free, pool.free_without(found)) == (1, 1)
    assert [pool.shared(block) for block in blocks] == [True, False]
    assert pool.find(names((9, 9), (3, 4))) == []
    pool.check([blocks, blocks[:1]])


def test_of_two_equal_blocks_the_first_is_found():
    pool = BlockPool(2, 1)
    first, second = filled(pool, (7,)), filled(pool, (7,))
    assert pool.find(names((7,))) == first
    pool.release(second)
    assert (pool.kept, pool.free) == (0, 1)
    pool.keep(first[0], names((7,))[0])  # saying it twice changes nothing
    pool.check([first])


def test_forgotten_blocks_are_never_found():
    pool = BlockPool(3, 1)
    held, idle = filled(pool, (1,)), filled(pool, (2,))
    pool.release(idle)
    pool.forget(held)
    assert (pool.find(names((1,))), pool.find(names((2,)))) == ([], idle)
    pool.forget()
    pool.check([held])
    assert (pool.find(names((2,))), pool.kept, pool.free) == ([], 0, 2)
    pool.release(held)
    assert pool.kept == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pool: pool.allocate(4), "3 are free"),
        (lambda pool: pool.allocate(-1), "-1 blocks"),
        (lambda pool: pool.share([0]), "block 0 is empty"),
        (lambda pool: pool.release([1]), "more often than it was taken"),
        (lambda pool: pool.keep(0, b"name"), "not held"),
        (lambda pool: (pool.keep(pool.allocate(1)[0], b"a"), pool.keep(0, b"b")), "something else"),
        (lambda pool: BlockPool(0, 1), "num_blocks is 0"),
        (lambda pool: BlockPool(1, True), "block_size is True"),
    ],
)
def test_misuse_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call(BlockPool(3, 1))


def lose(pool: BlockPool) -> None:
    pool._empty.pop()


def give_twice(pool: BlockPool) -> None:
    pool._empty.append(0)


def count_wrongly(pool: BlockPool) -> None:
    pool.references[0] += 1


def name_an_empty_one(pool: BlockPool) -> None:
    pool._digests[pool._empty[0]] = b"name"
    pool._places[b"name"] = pool._empty[0]


def lose_a_name(pool: BlockPool) -> None:
    pool._places.clear()


def keep_without_a_name(pool: BlockPool) -> None:
    pool._kept[pool._empty.pop()] = None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose, "lost"),
        (give_twice, "at once"),
        (count_wrongly, "counted"),
        (name_an_empty_one, "empty block can be found"),
        (lose_a_name, "another block than the one that bears it"),
        (keep_without_a_name, "cannot be found"),
    ],
)
def test_broken_books_are_noticed(spoil, words):
    pool = BlockPool(4, 1)
    table = filled(pool, (1,), (2,))
    pool.check([table])
    spoil(pool)
    with pytest.raises(RuntimeError, match=words):
        pool.check([table])


class Holders(RuleBasedStateMachine):
    """Tables that come and go, next to a dictionary that says what must be in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, 1)
        self.tables: list[tuple[list[int], list[int]]] = []  # blocks, and the token in each

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4), keep=st.booleans())
    def come(self, tokens, keep):
        named = names(*((token,) for token in tokens))
        found = self.pool.find(named)
        if len(tokens) - len(found) > self.pool.free_without(found):
            return
        self.pool.share(found)
        blocks = found + self.pool.allocate(len(tokens) - len(found))
        for block, name in zip(blocks, named, strict=True):
            if keep and block not in found:
                self.pool.keep(block, name)
        self.tables.append((blocks, tokens))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data):
        blocks, tokens = data.draw(st.sampled_from(self.tables))
        self.pool.share(blocks)
        self.tables.append((list(blocks), list(tokens)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), forget=st.booleans())
    def go(self, data, forget):
        blocks, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        if forget:
            self.pool.forget(blocks)
        self.pool.release(blocks)

    @invariant()
    def books_are_right(self):
        self.pool.check([blocks for blocks, _ in self.tables])
        inside: dict[int, list[int]] = {}
        for blocks, tokens in self.tables:
            for at, block in enumerate(blocks):
                assert inside.setdefault(block, tokens[: at + 1]) == tokens[: at + 1], "one block, two contents"


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
