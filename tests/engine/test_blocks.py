"""The block manager by hand: prefixes, forks, copies, eviction and slots."""

from __future__ import annotations

import pytest

from velollm.engine import BlockManager
from velollm.engine.blocks import Table, hash_chain, root_hash
from velollm.engine.events import Alias, Copy, Discard, Drop, Export, Import

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


def filled(blocks: BlockManager, tokens: list[int]) -> Table:
    """A sequence of these tokens, computed; what is found of it is not."""
    hashes = chain(tokens)
    table = blocks.open(blocks.recall(blocks.match(hashes), hashes))
    assert table is not None
    first = len(table.blocks)
    assert blocks.grow(table, 16 * first, len(tokens))
    blocks.publish(table, hashes, first, len(hashes))
    return table


def test_what_is_only_cached_goes_to_the_host_and_comes_back() -> None:
    blocks = BlockManager(8, host_tokens=64)
    blocks.close(filled(blocks, TOKENS))
    blocks.take_events()
    blocks.lay_aside(4)
    assert blocks.num_aside == 0
    blocks.lay_aside(3)
    assert (blocks.num_aside, blocks.num_cached, blocks.num_free) == (4, 0, 8), "what belongs together goes together"
    assert blocks.take_events() == [Export(-1, 0, (0, 1, 2, 3), 64), Drop(0, 0, -1)]
    table = filled(blocks, TOKENS[:48] + [1] * 16)
    imported, alias = blocks.take_events()
    assert isinstance(imported, Import)
    assert alias == Alias(imported.slot, table.slot, 0, 48)
    assert (blocks.num_aside, blocks.recalled, blocks.num_cached) == (0, 4, 5)
    blocks.check_integrity([table])


def test_of_a_slot_whose_beginning_is_in_use_the_rest_is_laid_aside() -> None:
    blocks = BlockManager(8, host_tokens=64)
    blocks.close(filled(blocks, TOKENS))
    table = filled(blocks, TOKENS[:32] + [1] * 16)
    blocks.take_events()
    blocks.lay_aside(0)
    lent = 2
    assert blocks.take_events() == [
        Alias(0, lent, 32, 64),
        Export(-1, lent, (2, 3), 32),
        Drop(lent, 0, -1),
        Drop(0, 32, 64),
    ]
    blocks.check_integrity([table])
    again = filled(blocks, TOKENS)
    assert blocks.recalled == 2
    blocks.check_integrity([table, again])


def test_what_needs_the_room_lays_the_oldest_aside_and_the_host_forgets_the_oldest() -> None:
    blocks = BlockManager(4, host_tokens=64)
    for start in range(0, 96, 32):
        blocks.close(filled(blocks, list(range(start, start + 32))))
    assert (blocks.num_aside, blocks.evicted) == (2, 0)
    filled(blocks, list(range(1000, 1064)))
    assert blocks.num_aside == 4
    assert Discard(-1) in blocks.take_events()
    assert blocks.recall([], chain(list(range(32)))) == []


def test_what_was_computed_anew_meanwhile_is_not_kept_twice() -> None:
    blocks = BlockManager(8, host_tokens=64)
    blocks.close(filled(blocks, TOKENS))
    blocks.lay_aside(0)
    table = blocks.open()
    assert table is not None
    assert blocks.grow(table, 0, 32)
    blocks.publish(table, chain(TOKENS), 0, 2)
    longer = filled(blocks, TOKENS)
    assert longer.blocks[:2] == table.blocks
    assert blocks.num_cached == 4
    blocks.check_integrity([table, longer])


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
