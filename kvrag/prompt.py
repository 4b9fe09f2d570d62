"""Cuts a prompt into segments: text to compute, and packets to attach where their texts stand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvrag.errors import PromptError
from kvrag.matching import Match
from kvrag.packet import PacketKey
from kvrag.tokenizing import ChunkTokenizer

__all__ = ["PacketSegment", "Segment", "SoftSegment", "TextSegment", "segment_prompt", "stripped"]


def stripped(texts: Iterable[str]) -> Iterator[str]:
    """The texts of chunks without the white space around them.

    Raises:
        PromptError: they are no texts, or a single one, which would be read letter by letter.
    """
    if isinstance(texts, str):
        raise PromptError(f"expected several texts, found one: {texts[:40]!r}; put it into a list")
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(
                f"expected texts, found a {type(text).__name__}; give what prompts will contain of it, such as "
                "`page_content` of LangChain's documents or `get_content()` of LlamaIndex's nodes"
            )
        yield text.strip()


@dataclass(frozen=True)
class TextSegment:
    """Tokens to compute: `ids` [S] of the characters `[start, end)` of the prompt."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PacketSegment:
    """A packet to attach: `ids` [T_chunk] are its chunk's own tokens, found at `[start, end)` of the prompt."""

    key: PacketKey
    ids: tuple[int, ...]
    start: int
    end: int

    def as_text(self) -> TextSegment:
        """The same tokens, to be computed."""
        return TextSegment(self.ids, self.start, self.end)


@dataclass(frozen=True)
class SoftSegment:
    """Trained embeddings that are computed at question time, such as "link"; takes `tokens` rows and no characters."""

    name: str
    tokens: int


Segment = TextSegment | PacketSegment | SoftSegment


def segment_prompt(
    prompt: str,
    matches: Sequence[Match[PacketKey]],
    tokenizer: ChunkTokenizer,
    *,
    literal_spans: Sequence[tuple[int, int]] = (),
    chunk_ids: Callable[[PacketKey, str], Sequence[int]] | None = None,
) -> list[Segment]:
    """Cut a prompt at its packets and tokenise the text between them, part by part.

    A tokenizer that opens texts with a BOS gets it in front of the prompt, unless the prompt spells it.

    Args:
        prompt: the final string, chat template applied.
        matches: packets by their place, sorted, none overlapping another.
        tokenizer: of the model.
        literal_spans: `(start, end)` of document texts without a packet: no special tokens are read there.
        chunk_ids: the ids of a packet's chunk, given its key and text, where they are known already.

    Returns:
        Segments whose character ranges follow each other without gap. The packets' ids and the text's ids in a row
        decode to the prompt, if the tokenizer is lossless. Characters that give no token give no segment either.

    Raises:
        PromptError: the prompt is empty, or no token comes of it.
    """
    if not prompt:
        raise PromptError("expected a prompt with at least one character, found an empty one; pass the question")
    segments: list[Segment] = []
    place = 0
    for match in matches:
        assert place <= match.start < match.end <= len(prompt)
        segments += _text(prompt, place, match.start, tokenizer, literal_spans)
        chunk = prompt[match.start : match.end]
        ids = tokenizer.encode(chunk, literal=True) if chunk_ids is None else chunk_ids(match.value, chunk)
        segments.append(PacketSegment(match.value, tuple(ids), match.start, match.end))
        place = match.end
    segments += _text(prompt, place, len(prompt), tokenizer, literal_spans)
    return _with_bos(segments, tokenizer.bos_id)


def _text(
    prompt: str, start: int, end: int, tokenizer: ChunkTokenizer, literal_spans: Sequence[tuple[int, int]]
) -> list[TextSegment]:
    """The prompt's `[start, end)` as one segment, or none when it has no tokens."""
    ids: list[int] = []
    for first, last, literal in _parts(start, end, literal_spans):
        opens = start == 0 and ids in ([], [tokenizer.bos_id])
        ids += tokenizer.encode(prompt[first:last], literal=literal, at_start=opens)
    return [TextSegment(tuple(ids), start, end)] if ids else []


def _parts(start: int, end: int, literal_spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """`[start, end)` in parts of one kind: where each begins and ends, and whether it is literal."""
    for first, last in sorted(literal_spans):
        first, last = max(first, start), min(last, end)
        if first < last:
            if start < first:
                yield start, first, False
            yield first, last, True
            start = last
    if start < end:
        yield start, end, False


def _with_bos(segments: list[Segment], bos_id: int | None) -> list[Segment]:
    if not segments:
        raise PromptError("expected a prompt with at least one token, found characters that the tokenizer drops")
    match segments[0]:
        case TextSegment(ids=ids) as opening if bos_id is not None and ids[0] != bos_id:
            return [replace(opening, ids=(bos_id, *ids)), *segments[1:]]
        case PacketSegment() if bos_id is not None:
            return [TextSegment((bos_id,), 0, 0), *segments]
    return segments
