"""A disk that is full, at any byte."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from toy_packets import SCOPE, raw, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.matching import fingerprint
from kvrag.store import PacketStore


def assert_safe(store: PacketStore, seeds) -> None:
    for seed in seeds:
        known = fingerprint(toy_text(seed))
        assert known
        key = store.find(SCOPE, known.digest)
        assert key is not None
        found = store.get(key)
        assert found is not None
        assert raw(found) == raw(toy_packet(seed))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 400 kB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(store: PacketStore, seeds: Iterable[int]) -> Iterator[int]:
    """Put packets until there is no room for one; those that were put."""
    for seed in seeds:
        try:
            store.put(toy_packet(seed), [toy_text(seed)])
        except StoreError as error:
            if "No space left" in str(error) or "full" in str(error):
                return
            raise
        yield seed
    raise AssertionError("the disk is not full")


def test_a_full_disk_costs_nothing_that_was_there(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(120_000))
    with PacketStore(small_disk / "store", memory_bytes=0) as store:
        put = list(fill(store, range(100)))
        assert len(put) > 3
        assert_safe(store, put)
        assert {problem.kind for problem in store.verify()} <= {"orphan"}  # a file whose row had no room
        for first in (100, 200, 300):  # and it stays so however often one tries
            put += fill(store, range(first, first + 100))
        assert_safe(store, put)
        ballast.unlink()
        store.repair()
        assert list(store.verify()) == []
        store.put(toy_packet(400), [toy_text(400)])
        assert_safe(store, [*put, 400])
    with PacketStore(small_disk / "store") as again:
        assert_safe(again, [*put, 400])


def test_a_disk_that_is_full_after_any_number_of_bytes(tmp_path, monkeypatch):
    """The packet's 5096 bytes end within a part, at its borders and in between."""
    write, room = os.write, 0

    def limited(fd, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[:room])
        room -= done
        return done

    with PacketStore(tmp_path) as store:
        store.put(toy_packet(0), [toy_text(0)])
        for limit in [0, 1, 4095, 4096, 4097, 4415, 4416, 4417, 5055, 5056, 5057, 5095, *range(7, 5096, 601)]:
            with monkeypatch.context() as patch:
                room = limit
                patch.setattr(os, "write", limited)
                with pytest.raises(StoreError, match="No space left"):
                    store.put(toy_packet(1), [toy_text(1)])
            assert list(store.verify()) == []
            assert_safe(store, [0])
        store.put(toy_packet(1), [toy_text(1)])
        assert_safe(store, [0, 1])
