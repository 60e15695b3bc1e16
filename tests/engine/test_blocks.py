"""The block manager by hand: prefixes, forks, copies, eviction and slots."""

from __future__ import annotations

import pytest

from velollm.engine import BlockManager
from velollm.engine.blocks import hash_chain, root_hash
from velollm.engine.events import Alias, Copy, Drop

TOKENS = list(range(100, 164))


def chain(tokens: list[int], root: bytes = root_hash()) -> list[bytes]:
    hashes: list[bytes] = []
    hash_chain(tokens, root, hashes)
    return hashes


def test_hashes_depend_on_all_that_came_before() -> None:
    one = chain(TOKENS)
    assert len(one) == 4
    assert chain(TOKENS[:40]) == one[:2]
    assert set(chain(TOKENS, root_hash("tenant"))).isdisjoint(one)
    assert set(chain([0, *TOKENS[1:]])).isdisjoint(one)
    assert root_hash("ab", "c") != root_hash("a", "bc")
    extended = one[:1]
    hash_chain(TOKENS, root_hash(), extended)
    assert extended == one


def test_a_prefix_is_found_by_those_who_may() -> None:
    blocks = BlockManager(8)
    table = blocks.open()
    assert table is not None
    assert blocks.grow(table, 0, 64)
    assert blocks.match(chain(TOKENS)) == []
    blocks.publish(table, chain(TOKENS), 0, 4)
    assert blocks.match(chain(TOKENS)) == table.blocks
    assert blocks.match(chain(TOKENS[:32] + [1] * 32)) == table.blocks[:2]
    assert blocks.match(chain(TOKENS, root_hash("other"))) == []
    hits = blocks.match(chain(TOKENS))[:3]
    other = blocks.open(hits)
    assert other is not None
    assert blocks.take_events() == [Alias(table.slot, other.slot, 0, 48)]
    assert (blocks.num_free, blocks.need(hits, 64)) == (4, 1)
    blocks.check_integrity([table, other])


def test_what_is_written_to_is_not_shared() -> None:
    blocks = BlockManager(4)
    parent = blocks.open()
    assert parent is not None
    assert blocks.grow(parent, 0, 20)
    child = blocks.fork(parent)
    assert child is not None
    assert child.blocks == parent.blocks
    blocks.take_events()
    shared = parent.blocks[1]
    assert blocks.grow(child, 20, 21)
    assert child.blocks[0] is parent.blocks[0]
    assert child.blocks[1] is not shared
    assert blocks.take_events() == [Copy(shared.id, child.blocks[1].id, 4)]
    assert blocks.grow(parent, 20, 21)
    assert parent.blocks[1] is shared, "nobody shares it any longer"
    assert blocks.take_events() == []
    blocks.check_integrity([parent, child])


def test_a_copy_needs_room() -> None:
    blocks = BlockManager(2)
    parent = blocks.open()
    assert parent is not None
    assert blocks.grow(parent, 0, 20)
    child = blocks.fork(parent)
    assert child is not None
    assert not blocks.grow(child, 20, 21)
    assert child.blocks == parent.blocks


def test_the_least_recently_used_goes_first_and_its_tail_before_its_head() -> None:
    blocks = BlockManager(4)
    for start in (0, 100):
        tokens = list(range(start, start + 32))
        table = blocks.open()
        assert table is not None
        assert blocks.grow(table, 0, 32)
        blocks.publish(table, chain(tokens), 0, 2)
        blocks.close(table)
    assert (blocks.num_free, blocks.num_cached) == (4, 4)
    table = blocks.open()
    assert table is not None
    assert blocks.grow(table, 0, 16)
    assert [len(blocks.match(chain(list(range(start, start + 32))))) for start in (0, 100)] == [1, 2]
    assert blocks.evicted == 1
    assert Drop(0, 16, 32) in blocks.take_events()


def test_holders_make_room_for_sequences_without_losing_what_is_cached() -> None:
    blocks = BlockManager(8, slots=2)
    first = blocks.open()
    assert first is not None
    assert blocks.grow(first, 0, 16)
    blocks.publish(first, chain(TOKENS), 0, 1)
    blocks.close(first)
    hits = blocks.match(chain(TOKENS))
    second = blocks.open(hits)
    assert second is not None
    third = blocks.open()
    assert third is not None, "the holder's only block has another owner by now"
    assert blocks.match(chain(TOKENS)) == hits
    assert blocks.open() is None
    blocks.check_integrity([second, third])


def test_without_sharing_nothing_is_found_or_forked() -> None:
    blocks = BlockManager(4, sharing=False)
    table = blocks.open()
    assert table is not None
    assert blocks.grow(table, 0, 32)
    blocks.publish(table, chain(TOKENS), 0, 2)
    assert blocks.match(chain(TOKENS)) == []
    assert blocks.fork(table) is None
    blocks.close(table)
    assert blocks.take_events() == [Drop(table.slot, 0, -1)]


@pytest.mark.parametrize(
    "wrong", [{"num_blocks": 0}, {"num_blocks": 1, "block_size": 0}, {"num_blocks": 1, "slots": 0}]
)
def test_impossible_pools(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        BlockManager(**wrong)
