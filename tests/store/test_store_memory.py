import threading

import pytest
from toy_packets import toy_packet

from kvrag.store.memory import HostMemory

PACKETS = [toy_packet(seed) for seed in range(5)]
A, B, C, D, E = PACKETS
SIZE = A.nbytes


@pytest.fixture
def memory():
    return HostMemory(3 * SIZE)


def resident(memory):
    return {packet for packet in PACKETS if packet.key in memory._entries}


def test_the_least_recently_used_packet_goes_first(memory):
    for packet in (A, B, C):
        memory.add(packet)
    assert memory.get(A.key) is A
    memory.add(D)
    assert resident(memory) == {A, C, D}
    assert memory.nbytes == 3 * SIZE


def test_a_packet_that_is_there_is_not_counted_twice(memory):
    memory.add(A)
    memory.add(toy_packet(0))
    assert memory.nbytes == SIZE
    assert memory.get(A.key) is A


def test_pinned_packets_stay_whatever_is_added(memory):
    memory.add(A)
    hold = memory.hold([A, B])
    for packet in (C, D, E):
        memory.add(packet)
    assert resident(memory) == {A, B, E}
    hold.release()
    memory.add(C)
    memory.add(D)
    assert resident(memory) == {C, D, E}


def test_pins_may_exceed_the_capacity_until_they_are_released(memory):
    with memory.hold(PACKETS) as hold:
        assert set(hold.packets.values()) == set(PACKETS)
        assert memory.nbytes == 5 * SIZE
    assert memory.nbytes == 3 * SIZE


def test_a_packet_held_twice_stays_until_both_have_let_go():
    memory = HostMemory(0)
    first, second = memory.hold([A]), memory.hold([A])
    first.release()
    first.release()
    assert memory.get(A.key) is A
    second.release()
    assert memory.get(A.key) is None
    assert memory.nbytes == 0


def test_a_packet_larger_than_the_memory_is_handed_out_but_not_kept():
    memory = HostMemory(SIZE - 1)
    memory.add(A)
    assert memory.nbytes == 0


def test_a_held_packet_can_be_discarded_and_come_back(memory):
    hold = memory.hold([A])
    memory.discard(A.key)
    assert memory.get(A.key) is None
    with memory.hold([A]):
        hold.release()
        assert memory._entries[A.key].pins == 1
    assert memory.nbytes == SIZE


def test_threads_leave_the_accounts_in_order(memory):
    def work(seed):
        for turn in range(300):
            packet = PACKETS[(seed + turn) % 5]
            memory.add(packet)
            with memory.hold([packet]) as hold:
                assert hold.packets[packet.key] is packet
            memory.discard(PACKETS[turn % 5].key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.nbytes == len(memory._entries) * SIZE <= memory.capacity
    assert not any(entry.pins for entry in memory._entries.values())
