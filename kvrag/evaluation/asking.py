"""Questions about documents that nobody has asked anything about yet."""

import math
import random
from collections.abc import Callable, Sequence

from kvrag.engine import PacketEngine
from kvrag.errors import DataError
from kvrag.qa.topics import QuestionSet, Topic
from kvrag.training.writing import with_questions

__all__ = ["write_questions"]

_CHUNKS = 8  # whose prompts share a pass
_REQUESTS = 3  # different questions to ask for about a chunk, at most


def write_questions(
    engine: PacketEngine,
    chunks: Sequence[str],
    count: int,
    seed: int = 0,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Have the engine's model write questions, each from one chunk alone.

    Args:
        engine: whose model writes, by full recompute.
        chunks: of the documents; fewer questions than these are written about a random choice of them.
        count: questions to write, at most; models that are not good at it write fewer.
        seed: of the choice.
        advance: hears of the questions as they come.

    Raises:
        DataError: not one question came of it.
    """
    order = random.Random(f"{seed}:chunks").sample(list(chunks), len(chunks))
    requests = min(_REQUESTS, math.ceil(count / max(len(order), 1)))
    written: dict[str, None] = {}
    for first in range(0, len(order), _CHUNKS):
        some = QuestionSet("these documents", (Topic("", tuple(order[first : first + _CHUNKS])),))
        try:
            asked = engine.run(with_questions, engine.model, some, seed, requests).topics[0].questions
        except DataError:  # nothing came of these; the next may do better
            continue
        new = [question.text for question in asked if question.text not in written][: count - len(written)]
        written |= dict.fromkeys(new)
        advance(len(new))
        if len(written) >= count:
            break
    if not written:
        raise DataError(
            f"expected {engine.model.name} to write questions about {len(order)} chunks, found no line that ends in a "
            "question mark; give questions of your own"
        )
    return list(written)
