"""The packet store as LangChain's store of bytes: LangChain's own suites, and what packets are there for."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.stores import BaseStore, InMemoryByteStore
from langchain_kvrag import ChatKVRag, PacketByteStore
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from kvrag.engine import PacketEngine
from kvrag.errors import CorruptPacketError, SettingsError
from kvrag.store import PacketStore
from tests.conftest import CHUNKS


@pytest.fixture(scope="module")
def packet_files(shared_engine: PacketEngine) -> dict[str, bytes]:
    """The files of three packets, by key."""
    shared_engine.build(CHUNKS[:3], progress=False)
    files = {row.key: shared_engine.store.export(row.key) for row in shared_engine.store.ls()}
    for key in files:
        shared_engine.store.remove(key)
    return files


@pytest.fixture
def byte_store(tmp_path) -> Iterator[PacketByteStore]:
    with PacketStore(tmp_path / "store") as store:
        yield PacketByteStore(store)


class TestSync(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, byte_store) -> BaseStore[str, bytes]:
        return byte_store

    @pytest.fixture
    def three_values(self, packet_files) -> tuple[bytes, bytes, bytes]:
        return tuple(packet_files.values())


class TestAsync(BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self, byte_store) -> BaseStore[str, bytes]:
        return byte_store

    @pytest.fixture
    def three_values(self, packet_files) -> tuple[bytes, bytes, bytes]:
        return tuple(packet_files.values())


def test_packets_travel_through_another_byte_store_and_are_not_computed_again(engine):
    """From one machine's store to another's; the same one here, which has lost everything meanwhile."""
    engine.build(CHUNKS, progress=False)
    packets, between = PacketByteStore(engine.store), InMemoryByteStore()
    keys = list(packets.yield_keys())
    assert len(keys) == len(CHUNKS)
    between.mset(list(zip(keys, packets.mget(keys), strict=True)))
    packets.mdelete(keys)
    assert list(packets.yield_keys()) == []

    packets.mset([(key, between.mget([key])[0]) for key in keys])
    assert list(packets.yield_keys()) == keys
    report = engine.build(CHUNKS, progress=False)
    assert (report.built, report.existing) == (0, len(CHUNKS))
    answer = ChatKVRag(engine=engine, max_tokens=4).invoke("\n\n".join(CHUNKS))
    assert answer.usage_metadata["input_token_details"]["cache_read"] >= sum(map(engine.count_tokens, CHUNKS)) > 0


def test_values_that_are_no_packets_are_refused_and_those_before_them_kept(byte_store, packet_files):
    first, second, _ = packet_files.values()
    damaged = second[:-9] + bytes([second[-9] ^ 1]) + second[-8:]
    for value in (b"", b"bytes that are no packet", second[:-1], damaged):
        with pytest.raises(CorruptPacketError, match="expected a packet file as the value of 'bad'"):
            byte_store.mset([("good", first), ("bad", value)])
    assert list(byte_store.yield_keys()) == ["good"]
    assert byte_store.mget(["good", "bad"]) == [first, None]


def test_what_is_no_store_is_refused_at_once(engine):
    with pytest.raises(SettingsError, match=r"expected a PacketStore, such as `engine\.store`"):
        PacketByteStore(engine)


async def test_the_event_loop_is_free_while_files_are_read(byte_store, packet_files, monkeypatch):
    byte_store.mset([("a", next(iter(packet_files.values())))])
    began, may_end = threading.Event(), threading.Event()
    mget = byte_store.mget

    def slow(keys):
        began.set()
        assert may_end.wait(10)
        return mget(keys)

    monkeypatch.setattr(byte_store, "mget", slow)
    reading = asyncio.create_task(byte_store.amget(["a"]))
    while not began.is_set():
        await asyncio.sleep(0.001)
    may_end.set()  # by the loop, which would never come here if the reader had it
    assert await reading == [next(iter(packet_files.values()))]
