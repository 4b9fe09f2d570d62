"""Texts of packets, to train on what a store holds."""

import random
from itertools import groupby

from kvrag.errors import CorruptPacketError, DataError
from kvrag.model import LanguageModel
from kvrag.qa import QuestionSet, Topic
from kvrag.store import PacketRow, PacketStore

__all__ = ["stored_passages"]

_TOGETHER = 32
"""Chunks of a topic: built in a row, so they are mostly of one document or of its neighbours."""


def stored_passages(
    store: PacketStore, model: LanguageModel, *, namespace: str = "default", most: int = 20_000, seed: int = 0
) -> QuestionSet:
    """The chunks that a namespace's packets were built from, in the order in which they were built.

    Nothing asks about them yet. Packets of any adapter, codec and recipe count, since only their tokens are read.

    Args:
        store: to read from; packets that are only on a remote are left out.
        model: whose tokenizer the packets must be of.
        namespace: whose packets.
        most: chunks; of more, topics are drawn.
        seed: of that draw.

    Raises:
        DataError: there are none.
    """
    rows = sorted((r for r in store.ls() if r.namespace == namespace), key=lambda r: (r.scope, r.first_text))
    readable: list[PacketRow] = []
    for _, scope in groupby(rows, key=lambda row: row.scope):
        of_scope = list(scope)
        if any(_text(store, model, row) is not None for row in of_scope[:_TOGETHER]):
            readable += of_scope
    topics = [readable[begin : begin + _TOGETHER] for begin in range(0, len(readable), _TOGETHER)]
    if len(readable) > most:
        topics = random.Random(f"{seed}:stored passages").sample(topics, most // _TOGETHER)
    seen: set[str] = set()
    found: list[Topic] = []
    for topic in topics:
        texts = dict.fromkeys(text for row in topic if (text := _text(store, model, row)))
        passages = tuple(text for text in texts if text not in seen)
        seen.update(passages)
        if passages:
            found.append(Topic(f"chunks from {len(seen) - len(passages)} on", passages))
    if not found:
        raise DataError(
            f"expected packets of {model.name} in namespace {namespace!r} of {store.root}, found "
            f"{len(rows)} packets there and none of this model's tokenizer; build them, or name another store"
        )
    return QuestionSet("stored", tuple(found))


def _text(store: PacketStore, model: LanguageModel, row: PacketRow) -> str | None:
    """What the packet was built from; None when it is another tokenizer's or cannot be read."""
    try:
        file = store.open(row.key)
        if file is None:
            return None
        with file:
            if file.header.identity.tokenizer != model.identity.tokenizer:
                return None
            return model.tokenizer.decode(file.token_ids.tolist()).strip()
    except (CorruptPacketError, OSError) as error:
        store.dismiss(row.key, error)
        return None
