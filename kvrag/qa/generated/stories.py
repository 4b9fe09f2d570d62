"""Passages that tell facts about one thing in sentences, and the topics made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvrag.qa.generated.drafting import Draft, Draw, Fact, sentence_case, to_topic
from kvrag.qa.topics import Topic

__all__ = ["Story", "tell_stories"]


@dataclass(frozen=True)
class Story:
    """A kind of passage.

    Attributes:
        title: of a topic.
        name: slots of what a passage is about.
        opens: first sentences, with `{name}`.
        facts: what it may tell.
    """

    title: str
    name: str
    opens: tuple[str, ...]
    facts: Mapping[str, Fact]


def tell_stories(
    draw: Draw,
    story: Story,
    write: Callable[[Draw, list[str]], str],
    *,
    passages: tuple[int, int] = (8, 12),
    facts: tuple[int, int] = (3, 6),
    words: Sequence[int] = (15, 15, 30, 60, 100, 160, 240),
) -> Topic:
    """A topic of passages, each about a thing of its own; all choose from the same facts.

    Args:
        draw: what decides.
        story: of which kind.
        write: makes a passage of its sentences.
        passages: at least and at most so many.
        facts: at least and at most so many in a passage.
        words: of the slot "filler", from which each passage picks.
    """
    drafts: list[Draft] = []
    for _ in range(draw.number(*passages)):
        name = draw.name(story.name)
        told = [draw.tell(fact, name) for fact in draw.some(story.facts.values(), *facts)]
        sentences = [said for said, _ in told]
        for text in draw.fill(draw.pick(words), "filler"):
            sentences.insert(draw.number(0, len(sentences)), sentence_case(text))
        opening = sentence_case(draw.compose(draw.pick(story.opens), name=name))
        drafts.append(Draft(write(draw, [opening, *sentences]), draw.some([asked for _, asked in told], 2, 4)))
    return to_topic(story.title, drafts)
