"""What a store counts, for Prometheus and for `PacketStore.stat`."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["MetricsOfStores", "StoreMetrics"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class StoreMetrics(Collector):
    """The metrics of one store, which belong to no registry until somebody registers them.

        prometheus_client.REGISTRY.register(store.metrics)

    Names begin with `kvrag_` and tell no store from another: `MetricsOfStores` does. Thread-safe.

    Attributes:
        hits: packets found, by `tier`.
        misses: packets found in no tier.
        bytes_read: of packet files, by `tier`; of host memory nothing is read.
        bytes_written: of packet files, by `tier`.
        corrupt: packets whose bytes were not what they claimed to be, by `tier`.
        evictions: packets that had to make room, by `tier`.
        load_seconds: of reading a packet into host memory, by the `tier` it was in.
        compute_seconds: of computing packets or prompts; observed by whoever computes, by `work`.
        upload_queue: packets that this process has still to upload.
        remote_failures: requests that the remote did not answer as it should, by `reason`: timeout, connection, server,
            denied, gone or other; `skipped` counts what was not asked because it had failed just before.
    """

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"kvrag_{name}", told, labels, registry=own)

        self.hits = counter("packet_hits", "Packets found", "tier")
        self.misses = counter("packet_misses", "Packets found in no tier")
        self.bytes_read = counter("packet_read_bytes", "Bytes of packet files read", "tier")
        self.bytes_written = counter("packet_written_bytes", "Bytes of packet files written", "tier")
        self.corrupt = counter("packet_corrupt", "Packets whose bytes are not what they claim to be", "tier")
        self.evictions = counter("packet_evictions", "Packets that had to make room", "tier")
        self.remote_failures = counter("remote_failures", "Requests the remote did not answer as it should", "reason")
        self.upload_queue = Gauge("kvrag_upload_queue_packets", "Packets that are still to be uploaded", registry=own)
        self.load_seconds = Histogram(
            "kvrag_packet_load_seconds", "Loading a packet from a tier", ["tier"], buckets=SECONDS, registry=own
        )
        self.compute_seconds = Histogram(
            "kvrag_compute_seconds", "Computing instead of loading", ["work"], buckets=SECONDS, registry=own
        )

    def collect(self) -> Iterable[Metric]:
        """All metrics, for a registry."""
        return self._registry.collect()

    def counts(self, counter: Counter) -> dict[str, int]:
        """A counter's values by its label; a counter without labels has the one label ""."""
        samples = [sample for metric in counter.collect() for sample in metric.samples]
        totals = [sample for sample in samples if sample.name.endswith("_total")]
        return {next(iter(sample.labels.values()), ""): int(sample.value) for sample in totals}


class MetricsOfStores(Collector):
    """The metrics of several stores for one registry, told apart by the label `store`.

        stores = {"manuals": manuals.metrics, "mails": mails.metrics}
        prometheus_client.REGISTRY.register(MetricsOfStores(stores))

    Args:
        stores: by the label's value. It is looked at whenever the registry collects, so stores may be added and taken
            away by replacing the mapping's items.
    """

    def __init__(self, stores: Mapping[str, StoreMetrics]) -> None:
        self._stores = stores

    def collect(self) -> Iterable[Metric]:
        """Every metric once, with the samples of all stores."""
        found: dict[str, Metric] = {}
        for name, metrics in dict(self._stores).items():
            for metric in metrics.collect():
                whole = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                whole.samples += [each._replace(labels={"store": name} | each.labels) for each in metric.samples]
        return found.values()
