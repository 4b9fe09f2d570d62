"""Small packets, and what the processes of the store's tests do with them."""

import os
import pathlib
import time

import numpy as np
import torch

from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore, disk, format, index

IDENTITY = Identity(config="config", weights="weights", tokenizer="tokenizer", rope="rope", dtype="float32")
SCOPE = Scope(IDENTITY, Recipe())


def toy_packet(seed: int = 0, *, scope: Scope = SCOPE, shape: tuple[int, ...] = (3, 2, 2, 5, 4)) -> Packet:
    """A packet of random bytes, NaNs and infinities among them."""
    generator = np.random.default_rng(seed)
    dtype = getattr(torch, scope.identity.dtype)
    kv = torch.frombuffer(bytearray(generator.bytes(int(np.prod(shape)) * dtype.itemsize)), dtype=dtype).view(shape)
    ids = np.arange(seed, seed + shape[3])
    return Packet(scope.key(ids), scope, ids, kv)


def toy_text(seed: int) -> str:
    return f"Chunk number {seed:06d} of a corpus that nobody has read so far."


def raw(packet: Packet) -> bytes:
    return packet.kv.contiguous().view(torch.uint8).numpy().tobytes()


def put_many(root, seeds, acknowledged) -> None:
    """Put packets one after another and say which ones are safe."""
    with PacketStore(root) as store:
        for seed in seeds:
            store.put(toy_packet(seed), [toy_text(seed)])
            acknowledged.send(seed)


def put_and_stop(root, seed, point, reached) -> None:
    """Put a packet, but stop for good at a point in the middle."""

    def stop(*_arguments):
        reached.send(point)
        time.sleep(600)

    write = os.write
    if point == "temporary file begun":
        format.os.write = lambda fd, data: write(fd, data[:100]) and stop()
    elif point == "temporary file written":
        disk.os.replace = stop
    elif point == "renamed":
        PacketStore.__init__.__globals__["Index"].add = stop
    elif point == "in the transaction":
        index._add_texts = stop
    with PacketStore(root) as store:
        store.put(toy_packet(seed), [toy_text(seed)])


def put_slowly(root, seed, events) -> None:
    """Put a packet, with a pause between its file and its row."""
    add = index.Index.add

    def slow(*arguments):
        events.send("renamed")
        time.sleep(0.3)
        add(*arguments)

    index.Index.add = slow
    with PacketStore(root) as store:
        store.put(toy_packet(seed), [toy_text(seed)])
        events.send("put")


def open_as_somebody_else(root, answer) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        PacketStore(root)
    except Exception as error:
        answer.send((type(error).__name__, str(error)))
    else:
        answer.send(None)


def use_after_fork(root, answer) -> None:
    """Use one store in a process and in its fork, by turns."""
    with PacketStore(root) as store:
        store.put(toy_packet(0), [toy_text(0)])
        if os.fork() == 0:
            store.put(toy_packet(1), [toy_text(1)])
            os._exit(0)
        _, status = os.wait()
        store.put(toy_packet(2), [toy_text(2)])
        answer.send((status, len(store.matcher(SCOPE)), [problem.kind for problem in store.verify()]))


def put_with_remote(root, remote, seeds, acknowledged) -> None:
    """Put packets while nothing can be uploaded."""
    with PacketStore(root, **remote) as store:
        for seed in seeds:
            store.put(toy_packet(seed), [toy_text(seed)])
        acknowledged.send(store.stat().pending_uploads)
        time.sleep(600)


def hold_with_remote(root, remote, seeds, events) -> None:
    """Bring packets from a remote, as many at a time as a store does."""
    with PacketStore(root, **remote) as store:
        for seed in seeds:
            store.register(SCOPE, toy_text(seed), toy_packet(seed).key)
        events.send("registered")
        with store.hold([toy_packet(seed).key for seed in seeds]) as hold:
            events.send(len(hold.packets))
            time.sleep(600)


def read_in_a_fork(root, answer) -> None:
    """Read a packet with several threads in a process and then in its fork."""
    packet = toy_packet(0, shape=(6, 2, 2, 1024, 128))  # 12 MiB
    with PacketStore(root, memory_bytes=0) as store:
        store.put(packet, [])
        found = [store.get(packet.key)]
        if os.fork() == 0:
            again = store.get(packet.key)
            os._exit(0 if again is not None and raw(again) == raw(packet) else 1)
        _, status = os.wait()
        found.append(store.get(packet.key))
        answer.send((status, [each is not None and raw(each) == raw(packet) for each in found]))


def collect_and_stop(root, remote, in_use, point, reached) -> None:
    """Delete what no text in use leads to, from the remote too, but stop for good at a point in the middle."""

    def stop(*_arguments):
        reached.send(point)
        time.sleep(600)

    with PacketStore(root, **remote) as store:
        delete, withdrawn, calls = store._remote._objects.delete, store._index.withdrawn, []

        def second(path):
            calls.append(path)
            return delete(path) if len(calls) == 1 else stop()

        if point == "before the rows":
            store._index.remove_if = stop
        elif point == "before the objects":
            store._remote._objects.delete = stop
        elif point == "object deleted":
            store._index.withdrawn = lambda key, url: stop() or withdrawn(key, url)
        elif point == "among the objects":
            store._remote._objects.delete = second
        store.gc([toy_text(in_use)], grace=0, uploads=True)


def make_room_and_stop(root, disk_bytes, point, reached) -> None:
    """Put a packet for which another has to go, but stop for good while that goes."""

    def stop(*_arguments, **_options):
        reached.send(point)
        time.sleep(600)

    with PacketStore(root, memory_bytes=0, disk_bytes=disk_bytes) as store:
        remove, unlink = store._index.remove, pathlib.Path.unlink
        if point == "in the transaction":
            store._index.remove = lambda key, **options: remove(key, **options) and stop()
        elif point == "file deleted":
            pathlib.Path.unlink = lambda path, **options: stop() if not unlink(path, **options) else None
        store.put(toy_packet(9), [toy_text(9)])
