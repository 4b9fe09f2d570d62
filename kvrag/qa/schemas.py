"""Records of question files, checked, and the topics they become."""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from kvrag.qa.topics import Question, Topic

__all__ = ["SCHEMAS", "Article", "Conversation", "MarkedQuestion", "Record", "Row", "rows_to_topics"]


class Record(BaseModel):
    """A record of a file; fields that no schema asks for are passed over."""

    def topics(self) -> Iterator[Topic]:
        """What the record holds."""
        raise NotImplementedError


class _Text(BaseModel):
    text: str


class _Asked(BaseModel):
    question: str
    answers: list[_Text] = []
    is_impossible: bool = False


class _Paragraph(BaseModel):
    context: str
    qas: list[_Asked]


class Article(Record):
    """An article of SQuAD; questions marked as impossible to answer are left out."""

    title: str = ""
    paragraphs: list[_Paragraph]

    def topics(self) -> Iterator[Topic]:
        """One, with the paragraphs as passages."""
        asked = (
            (paragraph.context, q.question, [answer.text for answer in q.answers])
            for paragraph in self.paragraphs
            for q in paragraph.qas
            if not q.is_impossible
        )
        yield from _topic(self.title, (paragraph.context for paragraph in self.paragraphs), asked)


class _Columns(BaseModel):
    text: list[str]


class Row(BaseModel):
    """A question of SQuAD as a row of a table, which is how the Hugging Face hub has it."""

    title: str = ""
    context: str
    question: str
    answers: _Columns


class _Document(BaseModel):
    text: str
    gold: bool


class MarkedQuestion(Record):
    """A question with documents, some of which it takes to answer it."""

    id: str | int = ""
    question: str
    answers: list[str]
    docs: list[_Document]

    def topics(self) -> Iterator[Topic]:
        """One, with the documents' texts as passages."""
        passages = _distinct(doc.text for doc in self.docs)
        gold = _distinct(doc.text for doc in self.docs if doc.gold)
        if passages and self.question.strip():
            numbers = tuple(sorted(passages.index(text) for text in gold))
            question = Question(self.question.strip(), _distinct(self.answers), numbers)
            yield Topic(str(self.id), passages, (question,))


class _Turn(BaseModel):
    speaker: str
    text: str


class Conversation(Record):
    """A conversation with passages retrieved for its last question; nobody says which of them answer it."""

    conversation_id: str | int
    turn: str | int
    input: list[_Turn]
    contexts: list[_Text]
    targets: list[_Text] = []

    def topics(self) -> Iterator[Topic]:
        """One, with the last question of the user; none if there are fewer than two passages."""
        passages = _distinct(context.text for context in self.contexts)
        asked = [turn.text.strip() for turn in self.input if turn.speaker == "user" and turn.text.strip()]
        if asked and len(passages) >= 2:
            question = Question(asked[-1], _distinct(target.text for target in self.targets))
            yield Topic(f"{self.conversation_id}, turn {self.turn}", passages, (question,))


SCHEMAS: dict[type[BaseModel], frozenset[str]] = {
    Article: frozenset({"paragraphs"}),
    Row: frozenset({"context", "question", "answers"}),
    MarkedQuestion: frozenset({"question", "answers", "docs"}),
    Conversation: frozenset({"conversation_id", "turn", "input", "contexts"}),
}
"""By which fields a record's schema is told."""


def rows_to_topics(rows: Iterable[Row]) -> Iterator[Topic]:
    """Topics of rows: those with the same title are one, in order of appearance; rows without title are one too."""
    by_title: dict[str, list[Row]] = {}
    for row in rows:
        by_title.setdefault(row.title, []).append(row)
    for title, group in by_title.items():
        asked = ((row.context, row.question, row.answers.text) for row in group)
        yield from _topic(title, (row.context for row in group), asked)


def _topic(title: str, contexts: Iterable[str], asked: Iterable[tuple[str, str, Sequence[str]]]) -> Iterator[Topic]:
    """The topic of contexts, and of (context, question, answers); none if there is no text."""
    passages = _distinct(contexts)
    number = {text: place for place, text in enumerate(passages)}
    questions = tuple(
        Question(question.strip(), _distinct(answers), (number[context.strip()],))
        for context, question, answers in asked
        if context.strip() and question.strip()
    )
    if passages:
        yield Topic(title, passages, questions)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Stripped, without empty ones and duplicates."""
    return tuple(dict.fromkeys(stripped for text in texts if (stripped := text.strip())))
