"""From the segments of a prompt to a lane: what is attached, what is computed, and where everything stands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from kvrag_kernels.rerotate import rerotate

from kvrag.attach import Block, ComputedStates, DevicePool, Extent, Lane, PacketRanking, PoolHold
from kvrag.model import LanguageModel, Rows
from kvrag.narrowing import ASKING_ROWS
from kvrag.packet import PacketKey, digest_fields
from kvrag.prepared import Prepared
from kvrag.prompt import PacketSegment, SoftSegment, TextSegment
from kvrag.recompute import PromptLayout, Repair

__all__ = ["Plan", "plan_lane", "remember"]


@dataclass
class Plan:
    """One prompt on the device.

    Attributes:
        prepared: the prompt.
        lane: with everything attached.
        rows: what is left to compute.
        computed_text: of every computed segment, the digest before it, its ids, and where its rows stand.
        hold: what keeps its packets on the device, if they are in a pool; released with the plan.
    """

    prepared: Prepared
    lane: Lane
    rows: Rows
    computed_text: list[tuple[str, Sequence[int], torch.Tensor | None, int]] = field(default_factory=list)
    hold: PoolHold | None = None

    @property
    def computed(self) -> float:
        """Rows that go through the model before the first token, as a mean over its layers once that is known."""
        return len(self.rows.ids) if self.rows.repair is None else self.rows.repair.computed

    @property
    def cached(self) -> int:
        """Rows of the prompt that nobody computes: packets and states of earlier prompts."""
        fresh = len(self.rows.ids) if self.rows.repair is None else math.ceil(self.rows.repair.fresh)
        return self.prepared.tokens - fresh

    def again(self, logits: torch.Tensor) -> Prepared | None:
        """What has to be answered instead, by what the pass over the prompt has found out; None keeps its answer.

        Args:
            logits: `[vocab]` of the first token.
        """
        if self.rows.ranking is not None:
            assert self.prepared.narrow is not None, "packets are ranked to narrow a prompt"
            return self.prepared.narrow(self.rows.ranking.shares)
        instead = self.prepared.instead(logits)
        return None if instead is None else replace(instead, kept=self.prepared.kept)

    def release(self) -> None:
        """Let the packets go; calling it again does nothing."""
        if self.hold is not None:
            self.hold.release()


def plan_lane(
    model: LanguageModel,
    prepared: Prepared,
    states: ComputedStates,
    new_tokens: int,
    pool: DevicePool | None = None,
) -> Plan:
    """Attach what is known and list what is to be computed.

    At least the prompt's last row is computed, since the first token is sampled from it; where packets are to be
    ranked, all rows that ask.

    Args:
        model: to run on.
        prepared: the prompt; its last segment is not a packet.
        states: computed for earlier prompts.
        new_tokens: rows to make room for behind the prompt.
        pool: of packets on the device; without one they are copied there for this plan alone.

    Raises:
        PoolFullError: the pool has no room until other plans are released.
    """
    packets = {s.key: prepared.packets[s.key] for s in prepared.segments if isinstance(s, PacketSegment)}
    blocks = {key: packet.kv.to(model.device) for key, packet in packets.items()} if pool is None else {}
    if prepared.selection is not None and packets:
        if pool is None:
            return _plan_private(model, prepared, new_tokens, blocks)
        with pool.hold(packets.values()) as hold:
            pool.arrivals.wait_for_all()
            return _plan_private(model, prepared, new_tokens, hold.slots)
    if pool is None:
        return _plan(model, prepared, states, new_tokens, blocks)
    hold = pool.hold(packets.values())
    try:
        plan = _plan(model, prepared, states, new_tokens, hold.slots)
    except BaseException:
        hold.release()
        raise
    plan.hold = hold
    return plan


def _plan(
    model: LanguageModel,
    prepared: Prepared,
    states: ComputedStates,
    new_tokens: int,
    blocks: Mapping[PacketKey, torch.Tensor | Block],
) -> Plan:
    ids: list[int] = []
    positions: list[int] = []
    soft: list[tuple[int, torch.Tensor]] = []
    extents: list[Extent] = []
    ranked: list[Extent] = []
    least = 1 if prepared.narrow is None else min(ASKING_ROWS, prepared.length(prepared.segments[-1]))
    texts: list[tuple[str, Sequence[int], torch.Tensor | None, int]] = []
    chain, reusing = prepared.chain, prepared.keeps_computed
    passed: list[object] = []  # kinds, names and positions of the segments that the chain does not cover yet
    for number, (segment, start) in enumerate(zip(prepared.segments, prepared.starts, strict=True)):
        if isinstance(segment, PacketSegment):
            packet, scales = prepared.packets[segment.key], (prepared.score_scale, prepared.merge_scale)
            extents.append(Extent.of_packet(packet, start, len(ids), blocks[segment.key], *scales))
            ranked.append(extents[-1])
            passed += "packet", segment.key, start
            continue
        if isinstance(segment, SoftSegment):
            passed += "soft", segment.name
        if passed:
            chain = digest_fields(chain, repr(passed))
            passed = []
        own = _ids(segment)
        is_last = number == len(prepared.segments) - 1
        known = states.find(chain, own[:-least] if is_last else own) if reusing else None
        done = 0 if known is None else known.shape[3]
        if known is not None:
            extents.append(Extent(known, 0, 0))
        reusing = reusing and done == len(own)
        if done < len(own):
            texts.append((chain, own, known, len(ids)))
            if isinstance(segment, SoftSegment):
                soft.append((len(ids), prepared.soft[segment.name][done : len(own)].to(model.device, model.dtype)))
                ids += [0] * (len(own) - done)
            else:
                ids += own[done:]
            positions.extend(range(start + done, start + len(own)))
        passed += "text", own, start
    lane = model.new_lane(len(ids) + new_tokens)
    lane.attach(extents)
    ranking = PacketRanking(ranked, least) if prepared.narrow is not None else None
    return Plan(prepared, lane, Rows(lane, ids, positions, soft, ranking=ranking), texts)


def _plan_private(
    model: LanguageModel, prepared: Prepared, new_tokens: int, blocks: Mapping[PacketKey, torch.Tensor | Block]
) -> Plan:
    """A lane whose block holds every packet at its place, re-rotated, between places for the text."""
    ids: list[int] = []
    positions: list[int] = []
    soft: list[tuple[int, torch.Tensor]] = []
    firsts: list[int] = []
    spans: list[tuple[int, int]] = []
    made: list[tuple[int, int]] = []
    extents: list[Extent] = []
    for segment, start in zip(prepared.segments, prepared.starts, strict=True):
        first = len(ids)
        match segment:
            case PacketSegment():
                packet = prepared.packets[segment.key]
                ids += packet.encoded_ids
                begin, end = (first + row for row in packet.token_rows)
                firsts.append(first)
                spans.append((begin, end))
                made += (first, begin), (end, len(ids))
                extents.append(Extent.of_packet(packet, start, first, blocks[segment.key]))
            case SoftSegment():
                soft.append((first, prepared.soft[segment.name][: segment.tokens].to(model.device, model.dtype)))
                ids += [0] * segment.tokens
            case TextSegment():
                ids += segment.ids
        positions += range(start, start + len(ids) - first)
    lane = model.new_lane(len(ids) + new_tokens)
    turns = model.rope.angles([extent.turn for extent in extents])
    rerotate([extent.kv for extent in extents], *turns, lane.own(0, len(ids)), firsts)
    assert prepared.selection is not None
    repair = Repair(prepared.selection, PromptLayout(len(ids), spans, model.geometry.layers, model.device, made))
    return Plan(prepared, lane, Rows(lane, ids, positions, soft, repair))


def _ids(segment: TextSegment | SoftSegment) -> list[int]:
    """What a computed segment is known by: its token ids, or negative numbers, which no token has."""
    return [-1 - i for i in range(segment.tokens)] if isinstance(segment, SoftSegment) else list(segment.ids)


def remember(plan: Plan, states: ComputedStates, generated: Sequence[int]) -> None:
    """Keep what a finished prompt computed; the answer continues its last text.

    Args:
        plan: whose rows all went through the model.
        states: to keep them in.
        generated: the answer's tokens; the last of them was sampled and never computed.
    """
    for number, (chain, ids, known, first) in enumerate(plan.computed_text):
        is_last = number == len(plan.computed_text) - 1
        last = plan.lane.length if is_last else plan.computed_text[number + 1][3]
        pieces = [plan.lane.own(first, last)]
        if known is not None:
            pieces.insert(0, known)
        if sum(piece.nbytes for piece in pieces) > states.capacity:
            continue
        continued = [*ids, *generated] if is_last else list(ids)
        kv = torch.cat(pieces, dim=3)  # a copy: the lane's own block is far larger
        states.keep(chain, continued[: kv.shape[3]], kv)
