"""What a store counts."""

from obstore.store import MemoryStore
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from toy_packets import toy_packet, toy_text

from kvrag.store import MetricsOfStores, PacketStore


def test_every_tier_counts_what_it_gives_and_takes(tmp_path):
    objects, registry = MemoryStore(), CollectorRegistry()
    packet, corrupt = toy_packet(0), toy_packet(1)
    with PacketStore(tmp_path / "a", remote=objects) as store:
        for each in (packet, corrupt):
            store.put(each, [])
        assert store.flush(10) == 0
        size = store.stat().bytes // 2
        store._disk.path(packet.scope.identity.digest, packet.key).unlink()
        path = store._disk.path(corrupt.scope.identity.digest, corrupt.key)
        path.write_bytes(path.read_bytes()[:-1])
        registry.register(store.metrics)
        assert store.get(packet.key) is not None  # remote
        assert store.get(packet.key) is not None  # memory
        store._memory.discard(packet.key)
        assert store.get(packet.key) is not None  # disk
        assert store.get(corrupt.key) is not None  # damaged on disk, whole on the remote
        assert store.get(toy_packet(2).key) is None
        store.metrics.compute_seconds.labels("packets").observe(0.5)

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"kvrag_{name}", labels)

        hits = [value("packet_hits_total", tier=tier) for tier in ("memory", "disk", "remote")]
        assert hits == [1, 1, 2]
        assert value("packet_misses_total") == 1
        assert value("packet_corrupt_total", tier="disk") == 1
        assert value("packet_read_bytes_total", tier="disk") == size
        assert value("packet_read_bytes_total", tier="remote") == 2 * size
        assert value("packet_written_bytes_total", tier="disk") == 4 * size
        assert value("packet_written_bytes_total", tier="remote") == 2 * size
        assert value("packet_load_seconds_count", tier="remote") == 2
        assert value("packet_load_seconds_count", tier="disk") == 1
        assert value("upload_queue_packets") == 0
        assert value("compute_seconds_sum", work="packets") == 0.5
        stat = store.stat()
        assert (stat.hits, stat.misses, stat.corrupt) == (4, 1, 1)


def test_packets_that_make_room_in_memory_are_counted(tmp_path):
    with PacketStore(tmp_path, memory_bytes=toy_packet().nbytes) as store:
        for seed in range(3):
            store.put(toy_packet(seed), [toy_text(seed)])
            store.get(toy_packet(seed).key)
        assert store.stat().tiers["memory"].evictions == 2
        assert store.stat().tiers["disk"].evictions == 0


def test_nothing_is_registered_by_itself(tmp_path):
    with PacketStore(tmp_path / "a") as first, PacketStore(tmp_path / "b"):
        assert b"kvrag" not in generate_latest(REGISTRY)
        registry = CollectorRegistry()
        registry.register(first.metrics)
        first.get(toy_packet().key)
        assert b"kvrag_packet_misses_total 1.0" in generate_latest(registry)


def test_several_stores_share_a_registry_and_are_told_apart(tmp_path):
    with (
        PacketStore(tmp_path / "a") as first,
        PacketStore(tmp_path / "b") as second,
        PacketStore(tmp_path / "c") as late,
    ):
        stores = {"a": first.metrics, 'b "quoted"\n': second.metrics}
        registry = CollectorRegistry(auto_describe=True)  # which refuses names that are there already
        registry.register(MetricsOfStores(stores))
        for _ in range(2):
            first.get(toy_packet(0).key)
        second.put(toy_packet(0), [])
        second.get(toy_packet(0).key)

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"kvrag_{name}", labels)

        assert value("packet_misses_total", store="a") == 2
        assert value("packet_misses_total", store='b "quoted"\n') == 0
        assert value("packet_hits_total", store='b "quoted"\n', tier="disk") == 1
        assert value("packet_load_seconds_bucket", store='b "quoted"\n', tier="disk", le="+Inf") == 1
        stores["c"] = late.metrics
        assert value("packet_misses_total", store="c") == 0
        del stores["a"]
        assert value("packet_misses_total", store="a") is None
        text = generate_latest(registry).decode()
        families = [family.name for family in text_string_to_metric_families(text)]
        assert len(families) == len(set(families)) == text.count("# TYPE")
        assert set(families) >= {"kvrag_packet_hits", "kvrag_packet_load_seconds", "kvrag_upload_queue_packets"}
