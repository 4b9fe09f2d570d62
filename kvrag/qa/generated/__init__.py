"""Question sets made by code: domains to train on, and sets to evaluate on that share no wording with them."""

from collections.abc import Callable

from kvrag.errors import SettingsError
from kvrag.qa.generated import biography, code, dialogues, directories, manuals, needle, news, records, tables
from kvrag.qa.topics import QuestionSet, Topic

__all__ = ["EVALUATION_SETS", "TRAINING_DOMAINS", "generate_questions"]

EVALUATION_SETS: tuple[str, ...] = ("needle", "biography")
"""Names of sets that nothing is ever trained on."""

TRAINING_DOMAINS: tuple[str, ...] = ("records", "dialogues", "code", "tables", "manuals", "news", "directories")
"""Names of sets to train on."""

_MAKERS: dict[str, Callable[[str], Topic]] = {
    "biography": biography.make_topic,
    "code": code.make_topic,
    "dialogues": dialogues.make_topic,
    "directories": directories.make_topic,
    "manuals": manuals.make_topic,
    "needle": needle.make_topic,
    "news": news.make_topic,
    "records": records.make_topic,
    "tables": tables.make_topic,
}


def generate_questions(name: str, count: int, seed: int) -> QuestionSet:
    """A set of invented passages and questions.

    Every question names what it is about, which stands in one passage of its topic only; its answer stands there word
    for word. A longer set of the same name and seed begins with the shorter one.

    Args:
        name: one of `EVALUATION_SETS` or `TRAINING_DOMAINS`.
        count: number of topics.
        seed: other topics under other seeds.

    Raises:
        SettingsError: there is no such set, or no topic is asked for.
    """
    if name not in _MAKERS:
        raise SettingsError(f"expected one of {', '.join(_MAKERS)}; found {name!r}; pick a set from these")
    if count < 1:
        raise SettingsError(f"expected at least one topic of {name}, found {count}; ask for more")
    return QuestionSet(name, tuple(_MAKERS[name](f"{name}/{seed}/{number}") for number in range(count)))
