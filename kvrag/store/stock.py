"""How large a store is, and what was asked of it."""

from collections.abc import Sequence

from kvrag.store.index import Index
from kvrag.store.metrics import StoreMetrics
from kvrag.store.records import StoreStat, TierStat
from kvrag.store.remote import RemoteTier
from kvrag.store.tiers import Tier

__all__ = ["take_stock"]


def take_stock(index: Index, tiers: Sequence[Tier], remote: RemoteTier | None, metrics: StoreMetrics) -> StoreStat:
    """The sizes of the index and of all tiers, and the counters of this process."""
    scopes, texts = index.totals()
    hits, corrupt, evictions = map(metrics.counts, (metrics.hits, metrics.corrupt, metrics.evictions))
    found = {
        tier.name: TierStat(
            bytes=tier.nbytes,
            capacity=tier.capacity,
            hits=hits.get(tier.name, 0),
            evictions=evictions.get(tier.name, 0),
            corrupt=corrupt.get(tier.name, 0),
        )
        for tier in tiers
    }
    return StoreStat(
        packets=sum(scope.packets for scope in scopes.values()),
        bytes=sum(scope.bytes for scope in scopes.values()),
        texts=texts,
        scopes=scopes,
        memory_bytes=found["memory"].bytes,
        hits=sum(hits.values()),
        misses=sum(metrics.counts(metrics.misses).values()),
        corrupt=sum(corrupt.values()),
        tiers=found,
        pending_uploads=len(index.pending(remote.url)) if remote else 0,
        remote_failures=metrics.counts(metrics.remote_failures),
    )
