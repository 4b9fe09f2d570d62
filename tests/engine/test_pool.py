"""Packets on the device keep their bytes, wherever they are moved, for as long as somebody holds them."""

import itertools
import queue
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvrag.attach import pool as module
from kvrag.attach.arrivals import Arrivals
from kvrag.attach.lane import Extent, Geometry
from kvrag.attach.pool import DevicePool
from kvrag.errors import EngineError, PoolError, PoolFullError
from kvrag.packet import Identity, Packet, Recipe, Scope

UNIT = 256
EVEN = Geometry(layers=2, kv_heads=2, heads=4, head_dim=8)  # in float32 one row takes one unit
ODD = Geometry(layers=3, kv_heads=2, heads=4, head_dim=4)  # in float32 one row takes 192 bytes
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def toy_packet(seed: int, tokens: int = 1, *, geometry: Geometry = EVEN, dtype: torch.dtype = torch.float32) -> Packet:
    """A packet of random bytes, NaNs and infinities among them."""
    scope = Scope(Identity(config="", weights="", tokenizer="", rope="", dtype=str(dtype)[6:]), Recipe())
    shape = (geometry.layers, 2, geometry.kv_heads, tokens, geometry.head_dim)
    data = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return Packet(scope.key([seed]), scope, np.array([seed]), torch.from_numpy(data).view(dtype).view(shape))


class AtOnce(Arrivals):
    """Copies that nobody has to wait for."""

    def load(self, pairs):
        super().load(pairs)
        self.wait_for_all()


def new_pool(units: int, geometry: Geometry = EVEN, dtype: torch.dtype = torch.float32) -> DevicePool:
    return DevicePool(geometry, dtype, DEVICE, units * UNIT, AtOnce(geometry.layers, DEVICE))


def raw(kv: torch.Tensor) -> bytes:
    return kv.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def cache(pool: DevicePool, *packets: Packet) -> None:
    """Put packets there one after another, held by nobody."""
    for packet in packets:
        pool.hold([packet]).release()


def resident(pool: DevicePool) -> set:
    return set(pool._slots)


def keys(*packets: Packet) -> set:
    return {packet.key for packet in packets}


def begins(pool: DevicePool, *packets: Packet) -> list[int]:
    """Where packets are, in units."""
    return [pool._slots[packet.key].address // UNIT for packet in packets]


def state(pool: DevicePool):
    """All that a refused hold must leave alone."""
    slots = [(key, slot.address) for key, slot in pool._slots.items()]
    return slots, dict(pool._pins), dict(pool._holes), pool.nbytes, pool.moves


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """Every pool of a test is checked after the test."""
    pools = []
    build = DevicePool.__init__

    def remember(pool, *arguments):
        build(pool, *arguments)
        pools.append(pool)

    monkeypatch.setattr(DevicePool, "__init__", remember)
    yield pools
    for pool in pools:
        pool.check_integrity()


A, B, C, D, E = (toy_packet(seed) for seed in range(5))
WIDE, WIDER = toy_packet(5, 2), toy_packet(6, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("geometry", [EVEN, ODD])
def test_bytes_arrive_as_they_were(geometry, dtype):
    packets = [toy_packet(seed, seed + 1, geometry=geometry, dtype=dtype) for seed in range(6)]
    pool = new_pool(60, geometry, dtype)
    with pool.hold(packets) as hold:
        assert list(hold.slots) == [packet.key for packet in packets]
        for packet in packets:
            slot = hold.slots[packet.key]
            assert slot.key == packet.key
            assert slot.kv.shape == packet.kv.shape
            assert slot.kv.dtype == dtype
            assert slot.kv.is_contiguous()
            assert raw(slot.kv) == raw(packet.kv)


def test_a_slot_knows_the_place_of_its_packet_without_a_view():
    pool = new_pool(20, ODD)
    packets = [toy_packet(seed, seed + 1, geometry=ODD) for seed in range(5)]
    with pool.hold(packets) as hold:
        for slot in hold.slots.values():
            assert Extent(slot, 0, 0).place == Extent(slot.kv, 0, 0).place


def test_a_slot_begins_at_a_multiple_of_256_bytes_from_the_start_of_the_arena():
    pool = new_pool(20, ODD)
    packets = [toy_packet(seed, seed + 1, geometry=ODD) for seed in range(5)]
    with pool.hold(packets) as hold:
        for packet in packets:
            slot = hold.slots[packet.key]
            assert slot.begin * 4 % UNIT == 0
            assert slot.kv.data_ptr() == pool.arena.data_ptr() + slot.begin * 4
            assert raw(pool.arena[slot.begin :][: packet.kv.numel()]) == raw(packet.kv)
    assert pool.nbytes == (1 + 2 + 3 + 3 + 4) * UNIT  # 192, 384, 576, 768 and 960 bytes


def test_the_arena_is_made_once():
    pool = new_pool(3)
    start = pool.arena.data_ptr()
    cache(pool, A, B, C, D, WIDER, A)
    pool.compact()
    assert pool.arena.data_ptr() == start
    assert pool.arena.shape == (3 * UNIT // 4,)


def test_a_packet_that_is_there_is_not_copied_again():
    pool = new_pool(3)
    cache(pool, A)
    with pool.hold([A]) as hold:
        hold.slots[A.key].kv.zero_()
        assert not pool.hold([A]).slots[A.key].kv.any()
    assert pool.nbytes == UNIT


def test_a_strided_packet_arrives_too():
    kv = torch.randn(2, 2, 2, 8, 6).transpose(3, 4)
    packet = Packet(A.key, A.scope, A.token_ids, kv)
    with new_pool(6).hold([packet]) as hold:
        assert torch.equal(hold.slots[A.key].kv.cpu(), kv)


def test_a_pool_made_in_inference_mode_works_outside_and_the_other_way_round():
    with torch.inference_mode():
        pool = new_pool(2)
        hold = pool.hold([A])
    cache(pool, B)
    with torch.inference_mode():
        cache(pool, C)
        pool.compact()
    assert raw(hold.slots[A.key].kv) == raw(A.kv)


def test_a_copy_that_fails_leaves_a_hole():
    pool = new_pool(3)
    cache(pool, A)
    broken = Packet(WIDE.key, WIDE.scope, WIDE.token_ids, WIDE.kv.to("meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        pool.hold([B, broken])
    pool.check_integrity()
    assert broken.key not in resident(pool)
    with pool.hold([A, WIDE]) as hold:
        assert raw(hold.slots[WIDE.key].kv) == raw(WIDE.kv)
        assert raw(hold.slots[A.key].kv) == raw(A.kv)


def test_the_least_recently_used_packet_goes_first():
    pool = new_pool(3)
    cache(pool, A, B, C, A, D)
    assert resident(pool) == keys(A, C, D)
    cache(pool, E)
    assert resident(pool) == keys(A, D, E)


def test_no_more_packets_go_than_needed():
    pool = new_pool(5)
    cache(pool, A, B, C)
    cache(pool, WIDER)
    assert resident(pool) == keys(B, C, WIDER)
    cache(pool, D, E)
    assert resident(pool) == keys(WIDER, D, E)


def test_held_packets_stay():
    pool = new_pool(3)
    hold = pool.hold([A])
    cache(pool, B, C, D, E)
    assert resident(pool) == keys(A, D, E)
    assert raw(hold.slots[A.key].kv) == raw(A.kv)
    hold.release()
    cache(pool, B)
    assert resident(pool) == keys(D, E, B)


def test_what_a_hold_finds_does_not_go_for_what_it_misses():
    pool = new_pool(3)
    cache(pool, A, B, C)
    with pool.hold([D, A]) as hold:
        assert resident(pool) == keys(A, C, D)
        assert raw(hold.slots[A.key].kv) == raw(A.kv)


def test_the_bytes_of_the_packets_that_stay_are_theirs():
    pool = new_pool(7)
    packets = {p.key: p for p in [toy_packet(seed, 1 + seed % 4) for seed in range(10, 30)]}
    for packet in packets.values():
        cache(pool, packet)
        for key, slot in pool._slots.items():
            assert raw(slot.kv) == raw(packets[key].kv)


def test_a_packet_asked_for_twice_counts_once():
    pool = new_pool(1)
    hold = pool.hold([A, toy_packet(0), A])
    assert list(hold.slots) == [A.key]
    assert pool.nbytes == UNIT
    hold.release()
    cache(pool, B)
    assert resident(pool) == keys(B)


def test_releasing_again_does_nothing():
    pool = new_pool(1)
    first, second = pool.hold([A]), pool.hold([A])
    first.release()
    first.release()
    assert not pool.fits([B])
    second.release()
    assert pool.fits([B])


def test_leaving_the_block_releases():
    pool = new_pool(1)
    with pool.hold([A]) as hold:
        assert hold.slots.keys() == keys(A)
        assert not pool.fits([B])
    assert pool.fits([B])


def test_what_is_sent_ahead_is_there_and_held_by_nobody():
    pool, packets = new_pool(2), [toy_packet(n) for n in range(2)]
    pool.send_ahead(packets)
    with pool.hold(packets) as hold:
        assert [raw(hold.slots[packet.key].kv) for packet in packets] == [raw(packet.kv) for packet in packets]
    later = toy_packet(2)
    pool.send_ahead([later])
    assert resident(pool) == keys(packets[1], later)


def test_what_does_not_fit_is_not_sent_ahead():
    pool, held = new_pool(2), [toy_packet(n) for n in range(2)]
    with pool.hold(held):
        before = state(pool)
        pool.send_ahead([toy_packet(2)])
        assert state(pool) == before


def test_nothing_can_be_held_too():
    pool = new_pool(0)
    with pool.hold([]) as hold:
        assert not hold.slots
    assert pool.fits([])


def test_a_packet_without_rows_can_be_held():
    empty = Packet(A.key, A.scope, A.token_ids, A.kv[:, :, :, :0])
    pool = new_pool(2)
    with pool.hold([empty, B]) as hold:
        assert pool.nbytes == 2 * UNIT
        assert hold.slots[empty.key].kv.shape == (2, 2, 2, 0, 8)
        assert raw(hold.slots[B.key].kv) == raw(B.kv)


def test_many_threads_may_release_the_same_hold():
    pool = new_pool(2)
    for _ in range(50):
        hold, other = pool.hold([A, B]), pool.hold([A])
        threads = [threading.Thread(target=hold.release) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool._pins == {pool._slots[A.key]: 1}
        other.release()
        assert not pool._pins


def test_a_release_waits_for_a_hold_under_way():
    pool = new_pool(1)
    hold = pool.hold([A])
    thread = threading.Thread(target=hold.release)
    with pool._lock:
        thread.start()
        thread.join(timeout=0.05)
        assert thread.is_alive()
        assert pool._pins
    thread.join()
    assert not pool._pins


def test_one_thread_holds_while_others_release_and_discard():
    pool = new_pool(24)
    packets = [toy_packet(seed, 1 + seed % 4) for seed in range(12)]
    holds: queue.SimpleQueue = queue.SimpleQueue()
    room = threading.Semaphore(3)  # holds of at most 8 units each

    def work():
        while (hold := holds.get()) is not None:
            pool.discard(next(iter(hold.slots)))
            hold.release()
            room.release()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(500):
        wanted = [packets[turn % 12], packets[(5 * turn + 1) % 12]]
        assert room.acquire(timeout=60)
        hold = pool.hold(wanted)
        assert [raw(hold.slots[p.key].kv) for p in wanted] == [raw(p.kv) for p in wanted]
        pool.check_integrity()
        holds.put(hold)
    for _ in threads:
        holds.put(None)
    for thread in threads:
        thread.join()
    assert not pool._pins


def test_a_refused_hold_changes_nothing():
    pool = new_pool(5)
    held = pool.hold([A, WIDE])
    cache(pool, B, C)
    before = state(pool)
    with pytest.raises(PoolFullError) as caught:
        pool.hold([B, A, WIDER])
    assert state(pool) == before
    assert (caught.value.needed, caught.value.capacity, caught.value.pinned) == (5 * UNIT, 5 * UNIT, 2 * UNIT)
    assert raw(held.slots[WIDE.key].kv) == raw(WIDE.kv)
    held.release()
    with pool.hold([B, A, WIDER]):
        assert resident(pool) == keys(B, A, WIDER)


def test_a_full_pool_says_what_is_held_and_what_to_do():
    pool = new_pool(3)
    with (
        pool.hold([A]),
        pytest.raises(
            PoolFullError,
            match="^expected 768 bytes for packets, found 768 of which 256 are held; "
            "end other holds or raise device_memory$",
        ),
    ):
        pool.hold([WIDER])


def test_a_packet_larger_than_the_pool_names_both_sizes():
    with pytest.raises(
        PoolFullError,
        match="^expected packets of at most 512 bytes, found one of 768; build smaller chunks or raise device_memory$",
    ):
        new_pool(2).hold([A, WIDER])


def test_every_refusal_is_an_error_of_the_engine():
    with pytest.raises(EngineError):
        new_pool(0).hold([A])


@pytest.mark.parametrize(
    "kv",
    [
        torch.zeros(3, 2, 2, 1, 8),
        torch.zeros(2, 1, 2, 1, 8),
        torch.zeros(2, 2, 4, 1, 8),
        torch.zeros(2, 2, 2, 1, 16),
        torch.zeros(2, 2, 2, 8),
        torch.zeros(2, 2, 2, 1, 1, 8),
        torch.zeros(2, 2, 2, 1, 8, dtype=torch.float16),
    ],
    ids=lambda kv: f"{list(kv.shape)} {kv.dtype}",
)
def test_packets_of_another_model_are_refused(kv):
    pool = new_pool(5)
    stranger = Packet(A.key, A.scope, A.token_ids, kv)
    before = state(pool)
    for refuse in (pool.hold, pool.fits):
        with pytest.raises(PoolError, match=r"^expected \[2, 2, 2, T, 8\] of torch.float32, found Packet\(.*anew$"):
            refuse([B, stranger])
    assert state(pool) == before


@pytest.mark.parametrize("capacity", [0, 1, 255])
def test_a_pool_without_room_refuses_everything(capacity):
    pool = DevicePool(EVEN, torch.float32, DEVICE, capacity)
    assert pool.capacity == 0
    assert not pool.fits([A])
    pool.compact()


def test_the_capacity_is_rounded_down():
    pool = DevicePool(EVEN, torch.float32, DEVICE, 3 * UNIT - 1)
    assert pool.capacity == 2 * UNIT
    assert pool.fits([A, B])
    assert not pool.fits([WIDER])


def test_packets_fit_beside_what_others_hold():
    pool = new_pool(4)
    cache(pool, A, B, C, D)
    assert pool.fits([WIDER])
    hold = pool.hold([A, B])
    assert pool.fits([WIDE])
    assert not pool.fits([WIDER])
    assert pool.fits([A, B, WIDE])
    assert pool.fits([A, B, A, C, D, C])
    assert not pool.fits([A, B, C, WIDE])
    hold.release()
    assert pool.fits([WIDER])


def test_packets_that_are_there_must_stay_beside_the_missing_ones():
    pool = new_pool(4)
    cache(pool, A, WIDER)
    assert not pool.fits([A, WIDE, D, E])


def test_asking_what_fits_changes_nothing():
    pool = new_pool(3)
    cache(pool, A, B, C)
    before = state(pool)
    pool.fits([A, WIDE])
    assert state(pool) == before


def test_a_packet_takes_the_smallest_hole_that_is_large_enough():
    pool = new_pool(11)
    gaps = [toy_packet(20, 4), A, toy_packet(21, 1), B, toy_packet(22, 2), C]
    cache(pool, *gaps)
    for packet in gaps[::2]:
        pool.discard(packet.key)
    assert pool._holes == {0: 4 * UNIT, 5 * UNIT: UNIT, 7 * UNIT: 2 * UNIT, 10 * UNIT: UNIT}
    cache(pool, WIDE, D, WIDER)
    assert begins(pool, WIDE, D, WIDER) == [7, 5, 0]
    assert pool.moves == 0


def test_large_packets_of_a_hold_find_their_places_first():
    pool = new_pool(6)
    cache(pool, WIDER, A, WIDE)
    pool.discard(WIDER.key)
    pool.discard(WIDE.key)
    with pool.hold([B, toy_packet(20, 2), toy_packet(21, 2)]):
        assert pool.moves == 0


@pytest.mark.parametrize("order", list(itertools.permutations([A, WIDE, WIDER])))
def test_neighbouring_holes_become_one(order):
    pool = new_pool(8)
    cache(pool, B, A, WIDE, WIDER, C)
    for packet in order:
        pool.discard(packet.key)
        pool.check_integrity()
    assert pool._holes == {UNIT: 6 * UNIT}
    with pool.hold([toy_packet(20, 6)]):
        assert pool.moves == 0


def test_all_holes_become_the_whole_arena():
    pool = new_pool(4)
    cache(pool, A, B, C, D)
    for packet in (B, D, C, A):
        pool.discard(packet.key)
    assert pool._holes == {0: pool.capacity}
    assert pool.nbytes == 0


def test_free_bytes_in_pieces_are_gathered_instead_of_evicting_more():
    pool = new_pool(6)
    held = pool.hold([B, D])
    cache(pool, A, C, E, toy_packet(20))
    assert begins(pool, B, D, A, C, E) == [0, 1, 2, 3, 4]
    pool.discard(A.key)
    pool.discard(E.key)
    with pool.hold([WIDE]) as hold:
        assert pool.moves == 1
        assert resident(pool) == keys(B, C, D, WIDE, toy_packet(20))
        assert begins(pool, B, D, C, toy_packet(20), WIDE) == [0, 1, 2, 3, 4]
        assert raw(hold.slots[WIDE.key].kv) == raw(WIDE.kv)
    assert [raw(held.slots[p.key].kv) for p in (B, D)] == [raw(p.kv) for p in (B, D)]
    assert raw(pool._slots[C.key].kv) == raw(C.kv)


def test_held_packets_move_and_read_the_same():
    pool = new_pool(6)
    cache(pool, A)
    hold = pool.hold([WIDER])
    slot = hold.slots[WIDER.key]
    before = slot.begin
    pool.discard(A.key)
    pool.compact()
    assert (before, slot.begin) == (UNIT // 4, 0)
    assert raw(slot.kv) == raw(WIDER.kv)
    assert Extent(slot, 0, 0).place == Extent(slot.kv, 0, 0).place
    assert slot.place[0] == pool.arena.data_ptr()
    assert pool.moves == 1


def test_a_hold_of_several_packets_compacts_at_most_once():
    pool = new_pool(9)
    singles = [toy_packet(seed) for seed in range(20, 29)]
    cache(pool, *singles)
    held = pool.hold(singles[1::2])
    with pool.hold([WIDE, toy_packet(30, 2), D]):
        assert pool.moves == 1
        pool.check_integrity()
    assert all(raw(held.slots[p.key].kv) == raw(p.kv) for p in singles[1::2])


def test_a_hold_never_fails_for_fragmentation():
    pool = new_pool(9)
    singles = [toy_packet(seed) for seed in range(20, 29)]
    cache(pool, *singles)
    held = pool.hold(singles[::2])
    with pool.hold([toy_packet(30, 4)]):
        assert pool.nbytes == pool.capacity
    assert all(raw(held.slots[p.key].kv) == raw(p.kv) for p in singles[::2])


def test_a_discarded_packet_that_is_held_moves_too():
    pool = new_pool(4)
    cache(pool, A)
    hold = pool.hold([WIDE])
    pool.discard(A.key)
    pool.discard(WIDE.key)
    pool.compact()
    assert hold.slots[WIDE.key].begin == 0
    assert raw(hold.slots[WIDE.key].kv) == raw(WIDE.kv)


def test_only_compactions_that_move_something_are_counted():
    pool = new_pool(4)
    pool.compact()
    cache(pool, A, B, C)
    pool.compact()
    pool.discard(C.key)
    pool.compact()
    assert pool.moves == 0
    pool.discard(A.key)
    pool.compact()
    pool.compact()
    assert pool.moves == 1
    assert pool._holes == {UNIT: 3 * UNIT}


@pytest.mark.parametrize("staging", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("distance", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("tokens", [1, 2, 5, 13])
def test_moves_onto_themselves_are_exact(monkeypatch, staging, distance, tokens):
    monkeypatch.setattr(module, "_STAGING", staging * UNIT)
    pool = new_pool(40)
    cache(pool, toy_packet(50, distance))
    packets = [toy_packet(51, tokens), A, WIDE]
    hold = pool.hold(packets)
    pool.discard(toy_packet(50).key)
    pool.compact()
    assert [raw(hold.slots[p.key].kv) for p in packets] == [raw(p.kv) for p in packets]
    assert pool._holes == {pool.nbytes: pool.capacity - pool.nbytes}


def test_much_that_moves_by_little_takes_few_copies(monkeypatch):
    pool = new_pool(60)
    cache(pool, A, toy_packet(50, 20), B, C, toy_packet(51, 30))
    pool.discard(A.key)
    copy, copied = torch.Tensor.copy_, []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *rest: copied.append(len(self)) or copy(self, *rest))
    pool.compact()
    assert [length for length in copied if length] == [52 * UNIT, 52 * UNIT]  # into the staging buffer and out of it


def test_a_packet_that_nobody_holds_goes_at_once():
    pool = new_pool(2)
    cache(pool, A, B)
    pool.discard(A.key)
    pool.discard(C.key)
    assert resident(pool) == keys(B)
    assert pool.nbytes == UNIT


def test_a_held_packet_stays_until_its_last_hold_ends():
    pool = new_pool(1)
    first, second = pool.hold([A]), pool.hold([A])
    pool.discard(A.key)
    pool.discard(A.key)
    first.release()
    assert not pool.fits([B])
    assert raw(second.slots[A.key].kv) == raw(A.kv)
    second.release()
    assert pool.nbytes == 0
    assert pool._holes == {0: UNIT}


def test_a_held_packet_can_be_discarded_and_come_back_with_other_bytes():
    pool = new_pool(3)
    old = pool.hold([A])
    pool.discard(A.key)
    rebuilt = Packet(A.key, A.scope, A.token_ids, B.kv)
    new = pool.hold([rebuilt])
    assert raw(old.slots[A.key].kv) == raw(A.kv)
    assert raw(new.slots[A.key].kv) == raw(B.kv)
    assert pool.nbytes == 2 * UNIT
    assert not pool.fits([A, WIDE])  # the old bytes are still held
    old.release()
    assert pool.fits([A, WIDE])
    new.release()
    assert resident(pool) == keys(A)


def overlap(pool):
    pool._slots[B.key].address = 0


def leave_the_arena(pool):
    pool._slots[B.key].address = pool.capacity


def misplace(pool):
    pool._slots[B.key].address += 4


def lose_a_hole(pool):
    pool._holes.popitem()


def split_a_hole(pool):
    pool._holes = {2 * UNIT: UNIT, 3 * UNIT: UNIT}


def free_a_place_that_is_taken(pool):
    pool._holes[0] = UNIT


def miscount(pool):
    pool.nbytes += UNIT


def release_too_often(pool):
    pool._pins[pool._slots[A.key]] -= 1


def forget_a_slot(pool):
    del pool._slots[A.key]


def mix_up_keys(pool):
    pool._slots[A.key], pool._slots[B.key] = pool._slots[B.key], pool._slots[A.key]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (overlap, "slots over another or the arena's end: expected .*"),
        (leave_the_arena, "slots over another or the arena's end: expected .*"),
        (misplace, "unaligned slots: expected .*, found .*Slot.*"),
        (lose_a_hole, r"holes: expected \{512: 512\}, found \{\}"),
        (split_a_hole, r"holes: expected \{512: 512\}, found \{512: 256, 768: 256\}"),
        (free_a_place_that_is_taken, "holes: expected .*"),
        (miscount, "bytes of packets: expected 512, found 768"),
        (release_too_often, "pins below 1: .*: -1.*"),
        (forget_a_slot, "holes: .*"),
        (mix_up_keys, "keys: .*"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_books_are_noticed(checked, damage, message):
    pool = new_pool(4)
    cache(pool, A, B)
    pool.check_integrity()
    damage(pool)
    with pytest.raises(PoolError, match=f"^{message}; report this as a bug of kvrag$"):
        pool.check_integrity()
    checked.clear()


class Reference:
    """What a pool must contain, without places: sizes in units, least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.holds: list = []  # dicts from key to a copy's number
        self.copies: dict = {}  # numbers by key, of the copies that can be found
        self.all: dict = {}  # sizes by number, of every copy in the arena

    def pinned(self) -> Counter:
        return Counter(number for hold in self.holds for number in hold.values())

    def fits(self, wanted: dict) -> bool:
        mine = {self.copies.get(key) for key in wanted}
        others = sum(self.all[number] for number in self.pinned() if number not in mine)
        return sum(wanted.values()) + others <= self.capacity

    def hold(self, wanted: dict, number) -> None:
        needed = sum(size for key, size in wanted.items() if key not in self.copies)
        for key in [key for key, n in self.copies.items() if key not in wanted and n not in self.pinned()]:
            if self.capacity - sum(self.all.values()) >= needed:
                break
            del self.all[self.copies.pop(key)]
        for key, size in wanted.items():
            known = self.copies.pop(key, None)
            self.copies[key] = next(number) if known is None else known
            self.all[self.copies[key]] = size
        self.holds.append({key: self.copies[key] for key in wanted})

    def release(self, index: int) -> None:
        self.holds.pop(index)
        self.sweep()

    def discard(self, key) -> None:
        self.copies.pop(key, None)
        self.sweep()

    def sweep(self) -> None:
        kept = {*self.copies.values(), *self.pinned()}
        self.all = {number: size for number, size in self.all.items() if number in kept}


class PoolMachine(RuleBasedStateMachine):
    """Any order of calls leaves the pool as the reference says, and every packet's bytes as they were."""

    UNITS = 17
    PACKETS = tuple(toy_packet(seed, 1 + 3 * seed % 11, geometry=ODD) for seed in range(14))
    RAW = {p.key: raw(p.kv) for p in PACKETS}
    SIZES = {p.key: -(-p.nbytes // UNIT) for p in PACKETS}

    @initialize(staging=st.sampled_from([1, 2, 5, 100]))
    def begin(self, staging):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_STAGING", staging * UNIT)
            self.pool = new_pool(self.UNITS, ODD)
        self.reference = Reference(self.UNITS)
        self.numbers = itertools.count()
        self.holds = []

    @rule(packets=st.lists(st.sampled_from(PACKETS), max_size=4))
    def hold(self, packets):
        wanted = {packet.key: self.SIZES[packet.key] for packet in packets}
        before, moves = state(self.pool), self.pool.moves
        assert self.pool.fits(packets) == self.reference.fits(wanted)
        assert state(self.pool) == before
        if not self.reference.fits(wanted):
            with pytest.raises(PoolFullError):
                self.pool.hold(packets)
            assert state(self.pool) == before
            return
        known = wanted.keys() <= self.reference.copies.keys()
        self.holds.append(self.pool.hold(packets))
        self.reference.hold(wanted, self.numbers)
        assert self.holds[-1].slots.keys() == wanted.keys()
        assert self.pool.moves - moves <= (0 if known else 1)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data):
        index = data.draw(st.integers(0, len(self.holds) - 1))
        hold = self.holds.pop(index)
        hold.release()
        hold.release()
        self.reference.release(index)

    @rule(packet=st.sampled_from(PACKETS))
    def discard(self, packet):
        self.pool.discard(packet.key)
        self.reference.discard(packet.key)

    @rule()
    def compact(self):
        fragmented = any(address < self.pool.nbytes for address in self.pool._holes)
        moves = self.pool.moves
        self.pool.compact()
        assert self.pool.moves == moves + fragmented
        assert len(self.pool._holes) <= 1

    @invariant()
    def the_books_agree(self):
        self.pool.check_integrity()
        assert list(self.pool._slots) == list(self.reference.copies)
        assert self.pool.nbytes == UNIT * sum(self.reference.all.values())
        assert sorted(self.pool._pins.values()) == sorted(self.reference.pinned().values())

    @invariant()
    def every_packet_reads_the_same(self):
        for key, slot in self.pool._slots.items():
            assert raw(slot.kv) == self.RAW[key]
        for hold in self.holds:
            for key, slot in hold.slots.items():
                assert raw(slot.kv) == self.RAW[key]


TestAnyOrderOfCalls = PoolMachine.TestCase
TestAnyOrderOfCalls.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
