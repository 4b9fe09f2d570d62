"""Packet attention on a GPU, as Triton kernels.

`reference.py` says what is computed, `work.py` how it is divided. Every program takes units until none is left, so the
same launch serves any prompt: that is what lets a CUDA graph hold it. Partial results are merged by a second kernel; a
third puts a pass's own keys and values where the others look for them.

Extents of bytes are read by branches that are compiled only for passes in which there may be such: INT8 and FP8 say so.

With EARLY a kernel may begin while the one before it ends, and waits only before it reads what that one wrote: the
tables of a pass are there from the start. Hopper's GPUs can do that.
"""

# pyright: reportOperatorIssue=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["INTERPRETED", "LOG2_E", "attend_units", "merge_parts", "write_rows"]

LOG2_E = 1.4426950408889634
INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on a machine without a GPU."""


@triton.jit
def _numbers(stored, kind: tl.constexpr, FORM: tl.constexpr):
    """What was loaded, in the type that is computed with; fp8 in units of 256."""
    if FORM == 2:  # as a float16 the bits are such a number, once the sign stands in front of it alone
        stored = ((stored.to(tl.int16) * 128) & -0x4001).to(tl.float16, bitcast=True)
    return stored.to(kind)


@triton.jit
def _tile(
    q_lo,
    q_hi,
    key,
    value,
    scales,
    lo,
    hi,
    d,
    in_half,
    first,
    needed,
    limit,
    highest,
    total,
    output,
    to_values,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    FORM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One step of online softmax; MASKED where a row does not see every token of the tile."""
    token = first + tl.arange(0, BLOCK_TOKENS)
    at = token[:, None] * D
    if MASKED or D != PADDED:
        there = (token < needed)[:, None]
        k_lo = tl.load(key + at + lo[None, :], mask=there & in_half[None, :], other=0.0)
        k_hi = tl.load(key + at + hi[None, :], mask=there & in_half[None, :], other=0.0)
        v = tl.load(value + at + d[None, :], mask=there & (d < D)[None, :], other=0.0)
    else:
        k_lo = tl.load(key + at + lo[None, :])
        k_hi = tl.load(key + at + hi[None, :])
        v = tl.load(value + at + d[None, :])
    scores = tl.dot(q_lo, tl.trans(_numbers(k_lo, q_lo.dtype, FORM)), input_precision="ieee")
    scores = tl.dot(q_hi, tl.trans(_numbers(k_hi, q_lo.dtype, FORM)), scores, input_precision="ieee")
    if FORM != 0:
        unit: tl.constexpr = 256.0 if FORM == 2 else 1.0
        key_scale = tl.load(scales + token, mask=token < needed, other=0.0).to(tl.float32)
        value_scale = tl.load(scales + to_values + token, mask=token < needed, other=0.0).to(tl.float32)
        scores *= (key_scale * unit)[None, :]
    if MASKED:
        seen = token[None, :] < limit[:, None]
        scores = tl.where(seen, scores, -1e30)
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    if FORM != 0:
        weights *= (value_scale * unit)[None, :]
    v = _numbers(v, q_lo.dtype, FORM)
    output = tl.dot(weights.to(q_lo.dtype), v, output * shrink[:, None], input_precision="ieee")
    return higher, total, output


@triton.jit
def _extent(
    q_lo,
    q_hi,
    key,
    value,
    scales,
    lo,
    hi,
    d,
    in_half,
    full,
    needed,
    limit,
    highest,
    total,
    output,
    to_values,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    FORM: tl.constexpr,
):
    """Online softmax over `needed` tokens, of which all rows see the first `full`."""
    for first in range(0, full, BLOCK_TOKENS):
        highest, total, output = _tile(
            q_lo, q_hi, key, value, scales, lo, hi, d, in_half, first, full, limit, highest, total, output, to_values,
            D, PADDED, BLOCK_TOKENS, FORM, False,
        )  # fmt: skip
    for first in tl.range(full, needed, BLOCK_TOKENS, num_stages=1):
        highest, total, output = _tile(
            q_lo, q_hi, key, value, scales, lo, hi, d, in_half, first, needed, limit, highest, total, output, to_values,
            D, PADDED, BLOCK_TOKENS, FORM, True,
        )  # fmt: skip
    return highest, total, output


@triton.jit(do_not_specialize=["layer"])
def attend_units(
    query,
    anchor,
    cos,
    sin,
    counts,
    units,
    items,
    entries,
    pieces,
    piece_offsets,
    piece_scales,
    lanes,
    partial,
    partial_lse,
    layer,
    scaling,
    query_row,
    query_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    INT8: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    kind: tl.constexpr = tl.float32 if UPCAST else anchor.dtype.element_ty
    # Channels i and i + HALF turn together. What does not turn is split too, so that `lo` and `hi` are one half each.
    d = tl.arange(0, PADDED)
    i = tl.arange(0, PADDED // 2)
    turns = i < HALF
    in_half = i < D // 2
    if 2 * HALF == D:
        lo = i
        hi = i + HALF
    else:
        lo = tl.where(turns, i, i + HALF)
        hi = tl.where(turns, i + HALF, i + D // 2)
    wanted = tl.load(counts) * HEADS
    for unit in range(tl.program_id(0), wanted, tl.num_programs(0)):
        head = unit % HEADS
        item = tl.load(units + unit // HEADS * 2)
        block = tl.load(units + unit // HEADS * 2 + 1)
        first_entry = tl.load(items + item * 4 + 1)
        count = tl.load(items + item * 4 + 2)
        first_part = tl.load(items + item * 4 + 3)
        m = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        entry = m // GROUP
        live = entry < count
        row = tl.load(entries + (first_entry + entry) * 2, mask=live, other=0)
        lane = tl.load(entries + (first_entry + entry) * 2 + 1, mask=live, other=0)
        q_at = query + row * query_row + (head * GROUP + m % GROUP) * query_head
        highest = tl.full([BLOCK_ROWS], -1e30, tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        output = tl.zeros([BLOCK_ROWS, PADDED], tl.float32)
        for piece in range(tl.load(items + item * 4), tl.load(items + item * 4 + 4)):
            tokens = tl.load(pieces + piece * 2)
            about = lanes + (tl.load(pieces + piece * 2 + 1) + lane) * 3
            scale = tl.load(piece_scales + piece) * scaling
            layer_at = layer.to(tl.int64) * tl.load(piece_offsets + piece * 6 + 3)
            head_stride = tl.load(piece_offsets + piece * 6 + 2)
            place = layer_at + head * head_stride
            key_at = place + tl.load(piece_offsets + piece * 6)
            value_at = place + tl.load(piece_offsets + piece * 6 + 1)
            first_row = tl.load(about, mask=live, other=1 << 30)
            bound = tl.load(about + 1, mask=live, other=0)
            turn = tl.load(about + 2, mask=live, other=0)
            limit = tl.minimum(tl.where(row >= first_row, row + bound, 0), tokens)
            needed = tl.max(limit, 0)  # rows of a prefill see few of their own tokens
            full = tl.min(tl.where(live, limit, tokens), 0) // BLOCK_TOKENS * BLOCK_TOKENS  # of which all rows see all
            angle = turn[:, None] * HALF + i[None, :]  # rows that are not live are row 0, turned by nothing
            if EARLY:
                gdc_wait()
            if D == PADDED:
                x = tl.load(q_at[:, None] + lo[None, :]).to(tl.float32)
                y = tl.load(q_at[:, None] + hi[None, :]).to(tl.float32)
            else:
                x = tl.load(q_at[:, None] + lo[None, :], mask=in_half[None, :], other=0.0).to(tl.float32)
                y = tl.load(q_at[:, None] + hi[None, :], mask=in_half[None, :], other=0.0).to(tl.float32)
            if 2 * HALF == PADDED:
                c = tl.load(cos + angle)
                s = tl.load(sin + angle)
            else:
                c = tl.load(cos + angle, mask=turns[None, :], other=1.0)
                s = tl.load(sin + angle, mask=turns[None, :], other=0.0)
            q_lo = ((x * c + y * s) * scale).to(kind)
            q_hi = ((y * c - x * s) * scale).to(kind)
            tl.debug_barrier()  # keeps the next loads' addresses from being computed above, where registers are short
            key_at = tl.multiple_of(key_at, 16)
            value_at = tl.multiple_of(value_at, 16)
            if INT8 or FP8:
                form = tl.load(piece_offsets + piece * 6 + 5)
                numbers = anchor.to(tl.pointer_type(tl.int8))
                key_scales = anchor.to(tl.pointer_type(tl.float16)) + layer_at // 2
                key_scales += tl.load(piece_offsets + piece * 6 + 4) + head * (head_stride // D)
                to_values = HEADS * (head_stride // D)
                if form == 0:
                    highest, total, output = _extent(
                        q_lo, q_hi, anchor + key_at, anchor + value_at, anchor, lo, hi, d, in_half, full, needed, limit,
                        highest, total, output, 0, D, PADDED, BLOCK_TOKENS, 0,
                    )  # fmt: skip
                if INT8:  # noqa: SIM102  # this is known to the compiler, the form is not
                    if form == 1:
                        highest, total, output = _extent(
                            q_lo, q_hi, numbers + key_at, numbers + value_at, key_scales, lo, hi, d, in_half, full,
                            needed, limit, highest, total, output, to_values, D, PADDED, BLOCK_TOKENS, 1,
                        )  # fmt: skip
                if FP8:  # noqa: SIM102
                    if form == 2:
                        highest, total, output = _extent(
                            q_lo, q_hi, numbers + key_at, numbers + value_at, key_scales, lo, hi, d, in_half, full,
                            needed, limit, highest, total, output, to_values, D, PADDED, BLOCK_TOKENS, 2,
                        )  # fmt: skip
            else:
                highest, total, output = _extent(
                    q_lo, q_hi, anchor + key_at, anchor + value_at, anchor, lo, hi, d, in_half, full, needed, limit,
                    highest, total, output, 0, D, PADDED, BLOCK_TOKENS, 0,
                )  # fmt: skip
        part = ((first_part + entry) * HEADS + head) * GROUP + m % GROUP
        known = tl.maximum(total, 1e-30)
        to = partial + part.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(to, output / known[:, None], mask=live[:, None] & (d < D)[None, :])
        tl.store(partial_lse + part, tl.where(total > 0, highest + tl.log2(known), -float("inf")), mask=live)


@triton.jit
def merge_parts(
    partial,
    partial_lse,
    counts,
    row_runs,
    runs,
    group_scale,
    group_bias,
    output,
    output_row,
    output_head,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    d = tl.arange(0, PADDED)
    in_head = d < D
    top = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    result = tl.zeros([PADDED], tl.float32)
    first_run = tl.load(row_runs + row)
    last_run = tl.load(row_runs + row + 1)
    groups = tl.load(counts + 1)
    if EARLY:
        gdc_wait()
    for group in range(0, groups):
        highest = tl.full([1], -1e30, tl.float32)
        weight = tl.zeros([1], tl.float32)
        merged = tl.zeros([PADDED], tl.float32)
        for run in range(first_run, last_run):
            mine = tl.load(runs + run * 4 + 3) == group
            first = tl.load(runs + run * 4)
            stride = tl.load(runs + run * 4 + 1)
            count = tl.where(mine, tl.load(runs + run * 4 + 2), 0)
            for begin in range(0, count, BLOCK_PARTS):
                number = begin + tl.arange(0, BLOCK_PARTS)
                there = number < count
                part = ((first + number * stride) * heads + head).to(tl.int64)
                lse = tl.load(partial_lse + part, mask=there, other=-float("inf"))
                higher = tl.maximum(highest, tl.max(lse, 0))
                share = tl.exp2(lse - higher)
                shrink = tl.exp2(highest - higher)
                piece = tl.load(
                    partial + part[:, None] * D + d[None, :], mask=there[:, None] & in_head[None, :], other=0.0
                )
                weight = weight * shrink + tl.sum(share, 0)
                merged = merged * shrink + tl.sum(piece * share[:, None], 0)
                highest = higher
        known = tl.maximum(weight, 1e-30)
        scaled = (highest + tl.log2(known)) * tl.load(group_scale + group) + tl.load(group_bias + group)
        scaled = tl.where(weight > 0, scaled, -1e30)
        higher = tl.maximum(top, scaled)
        share = tl.where(weight > 0, tl.exp2(scaled - higher), 0.0)
        shrink = tl.exp2(top - higher)
        result = result * shrink + merged / known * share
        total = total * shrink + share
        top = higher
    to = output + row * output_row + head * output_head + d
    tl.store(to, (result / tl.maximum(total, 1e-30)).to(output.dtype.element_ty), mask=in_head)


@triton.jit(do_not_specialize=["layer"])
def write_rows(
    key,
    value,
    anchor,
    places,
    layer,
    key_row,
    key_head,
    value_row,
    value_head,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    row = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    to = layer.to(tl.int64) * tl.load(places + row * 4 + 3) + head * tl.load(places + row * 4 + 2)
    if EARLY:
        gdc_wait()
    k = tl.load(key + row * key_row + head * key_head + d, mask=d < D)
    v = tl.load(value + row * value_row + head * value_head + d, mask=d < D)
    tl.store(anchor + (to + tl.load(places + row * 4)) + d, k, mask=d < D)
    tl.store(anchor + (to + tl.load(places + row * 4 + 1)) + d, v, mask=d < D)
