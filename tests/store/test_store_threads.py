"""Files that several threads read together."""

import threading
import time

import pytest
import torch

from kvrag.bench.pace import PacedReader
from kvrag.errors import CorruptPacketError
from kvrag.store import threads
from kvrag.store.bytes import read_exactly
from kvrag.store.format import write_packet
from kvrag.store.segments import PacketFile, ReadCancelledError
from kvrag.store.threads import share
from tests.store.toy_packets import raw, toy_packet

LAYERS, TOKENS = 8, 300


@pytest.fixture(autouse=True)
def many_threads(monkeypatch):
    monkeypatch.setattr(threads, "SHARE", 1 << 10)
    monkeypatch.setattr(threads, "THREADS", 4)
    threads._pool.cache_clear()  # another test may have made one of fewer threads
    yield
    threads._pool.cache_clear()


@pytest.fixture
def stored(tmp_path):
    packet = toy_packet(shape=(LAYERS, 2, 2, TOKENS, 4))
    with (tmp_path / "packet").open("wb") as file:
        write_packet(file.fileno(), packet)
    return tmp_path / "packet", packet


def together(count):
    """A `read` that goes on once so many threads are in it."""
    barrier, names = threading.Barrier(count, timeout=30), set()

    def read(fd, data, offset):
        name = threading.current_thread().name
        if len(data) > 8 * TOKENS and name not in names:  # the token ids are read alone
            names.add(name)
            barrier.wait()
        read_exactly(fd, data, offset)

    return read, names


def test_every_piece_is_done_once_and_by_several_threads_where_there_is_enough_to_do():
    barrier, done = threading.Barrier(4, timeout=30), []

    def job(piece):
        if piece < 4:
            barrier.wait()
        done.append((piece, threading.current_thread().name))

    share(job, range(20), 4 << 10)
    assert sorted(piece for piece, _ in done) == list(range(20))
    assert len({name for _, name in done}) == 4
    alone = []
    share(lambda piece: alone.append(threading.current_thread()), range(20), 1 << 10)
    assert alone == [threading.current_thread()] * 20


def test_an_error_in_any_thread_is_raised_when_all_have_stopped():
    barrier, running = threading.Barrier(4, timeout=30), []

    def job(piece):
        running.append(piece)
        if piece < 4:
            barrier.wait()
        if piece == 2:
            raise CorruptPacketError("two")
        time.sleep(0.01)
        running.remove(piece)

    with pytest.raises(CorruptPacketError, match="two"):
        share(job, range(8), 4 << 10)
    assert running == [2]


def test_layers_are_read_by_several_threads(stored):
    path, packet = stored
    read, names = together(4)
    with PacketFile(path, key=packet.key, read=read) as file:
        found = file.new_packet()
        file.read_layers(range(LAYERS), found)
    assert raw(found) == raw(packet)
    assert len(names) == 4


def test_tokens_are_read_by_several_threads(stored):
    path, packet = stored
    read, names = together(4)
    with PacketFile(path, key=packet.key, read=read) as file:
        data = file.new_packet().data.fill_(7)
        file.read_tokens(128, TOKENS, data)
    assert torch.equal(*(kv[:, :, :, 128:].view(torch.int32) for kv in (data, packet.kv)))
    assert (data[:, :, :, :128] == 7).all()
    assert len(names) == 4


@pytest.mark.parametrize("layer", range(0, LAYERS, 3))
def test_a_bad_layer_is_found_whoever_reads_it(stored, layer):
    path, packet = stored
    data = bytearray(path.read_bytes())
    place = data.find(raw(packet)[layer * packet.kv[0].nbytes :][: packet.kv[0].nbytes])
    data[place + 11] ^= 1
    path.write_bytes(data)
    with PacketFile(path, key=packet.key) as file:
        with pytest.raises(CorruptPacketError, match=f"the checksum of layer {layer} is wrong"):
            file.read_layers(range(LAYERS), file.new_packet())
        with pytest.raises(CorruptPacketError, match="the checksum of segment"):
            file.read_tokens(0, TOKENS, file.new_packet().data)


def test_what_nobody_wants_any_more_is_not_read(stored):
    path, packet = stored
    wanted = [True]
    with PacketFile(path, key=packet.key, cancelled=lambda: not wanted) as file:
        found = file.new_packet()
        file.read_layers(range(2), found)
        wanted.clear()
        with pytest.raises(ReadCancelledError):
            file.read_layers(range(2, LAYERS), found)
        with pytest.raises(ReadCancelledError):
            file.read_tokens(0, TOKENS, found.data)


def test_threads_keep_one_pace_together(stored):
    path, packet = stored
    seconds = 0.2
    begin = time.perf_counter()
    with PacketFile(path, key=packet.key, read=PacedReader(packet.nbytes / seconds)) as file:
        found = file.new_packet()
        file.read_layers(range(LAYERS), found)
    assert time.perf_counter() - begin > 0.9 * seconds
    assert raw(found) == raw(packet)
