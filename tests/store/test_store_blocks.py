import gc
import threading

import pytest
import torch
from toy_packets import SCOPE, raw, toy_packet

from kvrag.packet import PacketKey
from kvrag.store import PacketStore, packet_store
from kvrag.store.blocks import BlockArena

MIB = 1 << 20
LARGE = (4, 2, 8, 256, 160)  # 10 MiB in float32


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def place_of(store: PacketStore, key: PacketKey) -> int:
    found = store.get(key)
    assert found is not None
    return address(found.kv)


def test_a_block_is_used_again_when_nobody_holds_it():
    arena = BlockArena()
    tensor = arena(3 * MIB)
    tensor.fill_(7)
    first = address(tensor)
    del tensor
    assert arena.nbytes == 3 * MIB
    again = arena(3 * MIB - 100)
    assert (address(again), again.numel(), arena.nbytes) == (first, 3 * MIB - 100, 0)


@pytest.mark.parametrize(
    "part",
    [
        lambda tensor: tensor[5:9],
        lambda tensor: tensor.view(torch.bfloat16).view(2, -1)[1],
        lambda tensor: tensor.numpy()[:4],
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: torch.from_dlpack(tensor),
    ],
    ids=["slice", "view", "array", "memoryview", "dlpack"],
)
def test_whoever_holds_a_part_keeps_the_block(part):
    arena = BlockArena()
    held = part(arena(MIB))
    gc.collect()
    assert arena.nbytes == 0
    del held
    gc.collect()
    assert arena.nbytes == MIB


def test_two_tensors_never_share_memory():
    arena = BlockArena()
    first, second = arena(MIB), arena(MIB)
    first.fill_(1)
    second.fill_(2)
    assert first.eq(1).all()


def test_a_block_serves_sizes_that_waste_little_of_it():
    arena = BlockArena()
    del (lent := [arena(4 * MIB), arena(8 * MIB)])[:]
    assert lent == []
    held = [arena(3 * MIB), arena(7 * MIB)]  # the first would waste a quarter of the smallest block
    assert arena.nbytes == 4 * MIB
    assert len(held) == 2


def test_no_more_stays_idle_than_allowed():
    arena = BlockArena(idle_bytes=5 * MIB)
    tensors = [arena(2 * MIB) for _ in range(4)]
    last = address(tensors[-1])
    while tensors:
        tensors.pop(0)
    assert arena.nbytes == 4 * MIB
    assert last in {address(arena(2 * MIB)), address(arena(2 * MIB))}


def test_small_memory_is_not_kept():
    arena = BlockArena()
    assert arena(100).numel() == 100
    assert arena.nbytes == 0


def test_threads_never_get_memory_that_is_in_use():
    arena, wrong = BlockArena(), []

    def use(number: int) -> None:
        for _ in range(50):
            tensor = arena(MIB)
            tensor.fill_(number)
            if not tensor.eq(number).all():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena.nbytes <= 8 * MIB  # a thread asks for its next block before it lets go of the last one


def test_packets_that_are_let_go_make_room_for_others_and_those_held_stay_as_they_are(tmp_path):
    packets = [toy_packet(seed, shape=LARGE) for seed in range(3)]
    with PacketStore(tmp_path, memory_bytes=0) as store:
        for packet in packets:
            store.put(packet, [])
        held = store.get(packets[0].key)
        assert held is not None
        places = {place_of(store, packet.key) for packet in packets[1:] * 3}
        assert len(places) == 1
        assert raw(held) == raw(packets[0])


def test_packets_are_read_straight_into_pinned_memory(tmp_path, monkeypatch):
    lent = []

    def allocate(nbytes: int) -> torch.Tensor:
        lent.append(torch.empty(nbytes, dtype=torch.uint8))
        return lent[-1]

    monkeypatch.setattr(packet_store, "pinned", allocate)
    packet = toy_packet(0, scope=SCOPE, shape=LARGE)
    with PacketStore(tmp_path) as store:
        store.put(packet, [])
        store.pin_memory()
        found = store.get(packet.key)
    assert found is not None
    assert [address(tensor) for tensor in lent] == [address(found.kv)]
    assert raw(found) == raw(packet)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_memory_is_pinned(tmp_path):
    packet = toy_packet(0, shape=LARGE)
    with PacketStore(tmp_path) as store:
        store.put(packet, [])
        store.pin_memory()
        found = store.get(packet.key)
    assert found is not None
    assert found.kv.is_pinned()
