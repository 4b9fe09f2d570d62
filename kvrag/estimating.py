"""What packets of given texts would cost on this machine, and when that has been earned back. Builds nothing."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from kvrag.builder import Chunk, encode_batch, file_bytes, tokenize_chunk
from kvrag.errors import DataError, PromptError
from kvrag.matching import HEAD_CHARS
from kvrag.packet import Packet, Scope
from kvrag.prompt import stripped
from kvrag.store.codecs import CODECS
from kvrag.store.format import read_packet, write_packet

if TYPE_CHECKING:
    from kvrag.engine import PacketEngine

__all__ = ["BuildEstimate", "estimate"]

_LONG_S = 600.0
_SHARE = 0.5  # of the free disk that packets may take


@dataclass(frozen=True)
class BuildEstimate:
    """What `estimate` found; times are measured on the sample and scaled by tokens.

    Attributes:
        chunks: that would have a packet.
        left_out: texts too short or too long for one.
        tokens: rows of all packets.
        bytes: of all packets on disk, by codec; with layers that are stored as they are it gets more.
        codec: the one that times below are measured with.
        sampled: chunks that were encoded, written and read for it.
        tokens_per_s: encoded.
        build_s: to compute and write all packets.
        compute_ms: to compute an average chunk in a prompt.
        load_ms: to read and check its packet, from a disk whose cache does not have it.
        break_even_uses: of a packet, after which building it has taken no more time than it saved; None if never.
        free_bytes: on the disk.
        policy: that suits.
        reason: why, for people.
    """

    chunks: int
    left_out: int
    tokens: int
    bytes: Mapping[str, int]
    codec: str
    sampled: int
    tokens_per_s: float
    build_s: float
    compute_ms: float
    load_ms: float
    break_even_uses: int | None
    free_bytes: int
    policy: str
    reason: str


def estimate(engine: "PacketEngine", texts: Iterable[str], *, folder: Path, sample: int = 4) -> BuildEstimate:
    """Size and time of the packets of `texts`.

    Some chunks are encoded, and their packets are written to temporary files and read again. The store is not touched.

    Args:
        engine: whose model, strategy and codec count.
        texts: chunks as the model will see them.
        folder: on the disk that packets will be on.
        sample: chunks to measure with, of average length.

    Raises:
        DataError: no text can have a packet.
        OSError: `folder` cannot be written.
    """
    scope, given = engine.scope(), list(dict.fromkeys(stripped(texts)))
    chunks = [chunk for text in given if (chunk := _chunk(engine, scope, text))]
    if not chunks:
        raise DataError(f"expected texts of at least {HEAD_CHARS} characters, found none among {len(given)}")
    rows = [len(chunk.ids) + scope.recipe.extra_tokens for chunk in chunks]
    tokens, average = sum(rows), sum(rows) / len(rows)
    measured = sorted(chunks, key=lambda chunk: abs(len(chunk.ids) - average))[:sample]
    rates, write_s, load_s = _measure(engine, scope, measured, folder)
    compute, write, load = average / median(rates), median(write_s), median(load_s)
    sizes = {name: sum(file_bytes(engine.model, name, count) for count in rows) for name in CODECS}
    free = shutil.disk_usage(folder).free
    saved = compute - load
    uses = math.ceil((compute + write) / saved) if saved > 0 else None
    build_s = len(chunks) * (compute + write)
    policy, reason = _advice(sizes[engine.codec], free, build_s, uses)
    return BuildEstimate(
        chunks=len(chunks),
        left_out=len(given) - len(chunks),
        tokens=tokens,
        bytes=sizes,
        codec=engine.codec,
        sampled=len(measured),
        tokens_per_s=median(rates),
        build_s=build_s,
        compute_ms=1e3 * compute,
        load_ms=1e3 * load,
        break_even_uses=uses,
        free_bytes=free,
        policy=policy,
        reason=reason,
    )


def _chunk(engine: "PacketEngine", scope: Scope, text: str) -> Chunk | None:
    try:
        return tokenize_chunk(engine.model, scope, text) if len(text) >= HEAD_CHARS else None
    except PromptError:
        return None


def _measure(
    engine: "PacketEngine", scope: Scope, chunks: Sequence[Chunk], folder: Path
) -> tuple[list[float], list[float], list[float]]:
    """Rows encoded a second, seconds to write a packet durably, and seconds to read it from the disk itself."""
    rates, write_s, load_s = [], [], []
    engine.run(encode_batch, engine.model, engine.adapter, scope, chunks[:1])  # the first pass is no measure
    with tempfile.TemporaryDirectory(prefix="kvrag-estimate-", dir=folder) as place:
        for number, chunk in enumerate(chunks):
            begin = time.perf_counter()
            (packet,) = engine.run(encode_batch, engine.model, engine.adapter, scope, [chunk])
            rates.append(packet.tokens / (time.perf_counter() - begin))
            path = Path(place, str(number))
            write_s.append(_write(path, packet))
            begin = time.perf_counter()
            read_packet(path, key=packet.key)
            load_s.append(time.perf_counter() - begin)
    return rates, write_s, load_s


def _write(path: Path, packet: Packet) -> float:
    """Seconds until the packet is on the disk; then the kernel is asked to forget it."""
    begin = time.perf_counter()
    with path.open("wb") as file:
        write_packet(file.fileno(), packet)
        os.fsync(file.fileno())
        taken = time.perf_counter() - begin
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return taken


def _advice(size: int, free: int, build_s: float, uses: int | None) -> tuple[str, str]:
    if uses is None:
        return "hot-set", (
            "reading a packet takes longer here than computing its text, so few packets should be kept; "
            "try a smaller codec or a faster disk"
        )
    if size > _SHARE * free:
        return f"hot-set={max(2, uses)}", (
            f"all packets would take more than {_SHARE:.0%} of the free disk, so keep those that are used often"
        )
    if build_s > _LONG_S:
        return "on-first-use", (
            f"building everything takes {build_s / 60:.0f} minutes, and texts that nobody asks for need no packet"
        )
    return "eager", "everything is built soon and fits on the disk, so no question has to wait"
