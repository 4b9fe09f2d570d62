"""The packets of a prompt that only a remote has: asked for at once, each of them one time, whatever goes wrong."""

import threading
import time
from concurrent.futures import Future

import pytest
import torch
from s3 import BUCKET
from toy_packets import IDENTITY, SCOPE, hold_with_remote, raw, toy_packet, toy_text

from kvrag.builder import Chunk
from kvrag.loading import Loading, Rates
from kvrag.loading.loader import PacketLoader
from kvrag.store import PacketStore

SEEDS = range(12)
PACKETS = {toy_packet(seed).key: toy_packet(seed) for seed in SEEDS}
CHUNKS = {packet.key: Chunk("", packet.token_ids.tolist()) for packet in PACKETS.values()}


@pytest.fixture
def shared(tmp_path, s3):
    """Another machine has put all packets."""
    with PacketStore(tmp_path / "another machine", **s3.remote) as store:
        for seed, packet in zip(SEEDS, PACKETS.values(), strict=True):
            store.put(packet, [toy_text(seed)])
        assert store.flush(20) == 0
    s3.requests.clear()
    return s3


@pytest.fixture
def open_store(tmp_path, shared):
    """Opens stores that know of all packets and have none; what they asked for that is forgotten."""
    stores = []

    def make(**options) -> PacketStore:
        stores.append(PacketStore(tmp_path / "here", **shared.remote | {"remote_timeout": 10.0} | options))
        for seed, key in zip(SEEDS, PACKETS, strict=True):
            stores[-1].register(SCOPE, toy_text(seed), key)
        shared.requests.clear()
        return stores[-1]

    yield make
    shared.let_go.set()
    for store in stores:
        store.close(0)


class Computer:
    """What a loader needs of a model that is not to compute anything."""

    device = torch.device("cpu")

    def encode(self, *_):
        raise AssertionError("nothing is to be computed")

    tokenizer = property(lambda self: self)


def loader_of(store, mode="load", **rates) -> PacketLoader:
    return PacketLoader(Computer(), None, store, run_here, Loading(mode=mode, rates=Rates(**rates)))  # type: ignore[arg-type]


def run_here(job, *arguments) -> Future:
    future: Future = Future()
    future.set_result(job(*arguments))
    return future


def temporary_files(store) -> list:
    return list((store.root / "packets").rglob("*.tmp"))


def assert_whole(packets, seeds=SEEDS) -> None:
    assert {key: raw(packet) for key, packet in packets.items()} == {
        toy_packet(seed).key: raw(toy_packet(seed)) for seed in seeds
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_eight_are_asked_for_at_a_time_and_each_once(open_store, shared, monkeypatch, deterministic):
    store = open_store()
    meeting, at_work, most = threading.Barrier(8, timeout=10), set(), []
    read = store._remote._objects.read

    def together(path):
        at_work.add(path)
        most.append(len(at_work))
        if len(most) <= 8:
            meeting.wait()
        found = read(path)
        at_work.discard(path)
        return found

    monkeypatch.setattr(store._remote._objects, "read", together)
    loading = Loading(mode="load", rates=Rates(), deterministic=deterministic)
    fetched = PacketLoader(Computer(), None, store, run_here, loading).fetch(CHUNKS, SCOPE)  # type: ignore[arg-type]
    assert_whole(fetched.packets)
    assert max(most) == 8
    assert (shared.asked("GET"), len(shared.requests)) == (len(SEEDS), len(SEEDS))
    assert fetched.report.loaded_packets == len(SEEDS)
    assert store.stat().tiers["remote"].hits == len(SEEDS)
    assert list(store.verify()) == []


def test_what_is_on_disk_is_read_there_and_the_rest_fetched(open_store, shared):
    store = open_store(memory_bytes=0)
    here = list(PACKETS)[:5]
    with store.hold(here):
        pass
    shared.requests.clear()
    loader = loader_of(store)
    assert_whole(loader.fetch(CHUNKS, SCOPE).packets)
    assert len(shared.requests) == len(SEEDS) - 5
    assert_whole(loader.fetch(CHUNKS, SCOPE).packets)
    assert len(shared.requests) == len(SEEDS) - 5


def test_a_slow_remote_says_nothing_about_the_disk(open_store, shared):
    store = open_store(memory_bytes=0)
    loader, shared.delay = loader_of(store, bandwidth=1e9, latency=0.0), 0.1
    loader.fetch(CHUNKS, SCOPE)
    assert loader.live.now().bandwidth == 1e9
    loader.fetch(CHUNKS, SCOPE)
    assert loader.live.now().bandwidth != 1e9


@pytest.mark.parametrize("fault", ["unavailable", "stalled", "truncated", "refused", "wrong"])
@pytest.mark.parametrize("spared", [0, 5])
def test_a_remote_that_fails_under_way_costs_its_packets_and_no_more_than_one_wait(
    open_store, shared, fault, spared, monkeypatch, caplog
):
    store = open_store(remote_timeout=1.0)
    shared.fault, shared.spared = fault, spared
    begin = time.monotonic()
    with caplog.at_level("WARNING", "kvrag.store"):
        packets = loader_of(store).fetch(CHUNKS, SCOPE).packets
    assert time.monotonic() - begin < 10  # twice the timeout, not that for each packet
    assert len(packets) == spared
    assert_whole(packets, [seed for seed in SEEDS if toy_packet(seed).key in packets])
    assert len({path for _, path in shared.requests}) == len(shared.requests) <= len(SEEDS)
    if fault == "wrong":
        assert store.stat().corrupt == len(SEEDS) - spared  # all of them were asked, and are distrusted
    else:
        assert len(shared.requests) < len(SEEDS) or spared  # the later ones were not even asked for
        assert caplog.text.count("is not asked for 30 s") == 1
    shared.fault, shared.spared = None, 0
    shared.let_go.set()
    assert temporary_files(store) == []
    monkeypatch.setattr(store._remote, "_silent_until", 0.0)
    again = loader_of(store).fetch(CHUNKS, SCOPE).packets
    assert_whole(again) if fault != "wrong" else assert_whole(again, [s for s in SEEDS if toy_packet(s).key in packets])
    assert list(store.verify()) == []


def test_one_bad_object_among_good_ones_costs_one_packet(open_store, shared):
    store = open_store()
    bad = list(PACKETS)[3]
    shared.overwrite(f"shared/packets/{IDENTITY.digest[:16]}/{bad[:2]}/{bad}.safetensors", b"nonsense" * 600)
    packets = loader_of(store).fetch(CHUNKS, SCOPE).packets
    assert_whole(packets, [seed for seed in SEEDS if seed != 3])
    assert store.stat().corrupt == 1


def test_a_disk_budget_smaller_than_a_packet_hands_out_all_of_them(open_store, shared):
    store = open_store(disk_bytes=100)
    assert_whole(loader_of(store).fetch(CHUNKS, SCOPE).packets)
    assert len(list((store.root / "packets").rglob("*.safetensors"))) <= 1
    assert {row.remote for row in store.ls()} == {f"s3://{BUCKET}/shared"}
    assert list(store.verify()) == []


def test_a_process_killed_while_packets_come_in_leaves_nothing_but_temporary_files(shared, tmp_path, child):
    shared.fault, shared.spared = "stalled", 5  # the listing and four packets
    with child(hold_with_remote, tmp_path / "here", shared.remote | {"remote_timeout": 20.0}, SEEDS) as events:
        assert events.recv() == "registered"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(shared.requests) < 9:
            time.sleep(0.01)
        time.sleep(0.3)
    assert len(shared.requests) >= 9
    shared.fault = None
    shared.let_go.set()
    with PacketStore(tmp_path / "here", **shared.remote) as store:
        problems = list(store.verify())
        assert {problem.kind for problem in problems} == {"temporary"}
        assert store.repair().swept == len(problems)
        assert_whole(loader_of(store).fetch(CHUNKS, SCOPE).packets)
        assert list(store.verify()) == []
