import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrag.errors import DataError
from kvrag.qa import Question, Topic, load_questions
from kvrag.qa.folder import PASSAGE_CHARS, cut_passages

ARTICLE = {
    "title": "Harbour",
    "paragraphs": [
        {
            "context": " The harbour was dug in 1311. ",
            "qas": [
                {"question": "When was it dug? ", "answers": [{"text": "1311"}, {"text": "in 1311"}, {"text": "1311"}]},
                {"question": "Who?", "answers": [], "is_impossible": True},
            ],
        },
        {"context": "It holds 40 boats.", "qas": [{"question": "How many boats?", "answers": [{"text": "40"}]}]},
        {"context": "The harbour was dug in 1311.", "qas": [{"question": "What was dug?", "answers": []}]},
        {"context": "  ", "qas": []},
    ],
}
SQUAD = {"version": "1.1", "data": [ARTICLE]}
HARBOUR = Topic(
    "Harbour",
    ("The harbour was dug in 1311.", "It holds 40 boats."),
    (
        Question("When was it dug?", ("1311", "in 1311"), (0,)),
        Question("How many boats?", ("40",), (1,)),
        Question("What was dug?", (), (0,)),
    ),
)
ROWS = [
    {"title": "Harbour", "context": paragraph["context"], "question": qa["question"], "answers": {"text": texts}}
    for paragraph in ARTICLE["paragraphs"]
    for qa in paragraph["qas"]
    if not qa.get("is_impossible")
    for texts in [[answer["text"] for answer in qa["answers"]]]
]
MARKED = {
    "source": "x",
    "id": "7",
    "question": "Who built the mill by the moat?",
    "answers": ["Ada", "Ada"],
    "docs": [
        {"title": "Moat", "text": " The moat is by the mill.", "gold": True},
        {"title": "Bell", "text": "The bell is flat.", "gold": False},
        {"title": "Mill", "text": "Ada built the mill.", "gold": True},
    ],
}
TASK = {
    "conversation_id": "c",
    "turn": "3",
    "input": [
        {"speaker": "user", "text": "Is there a boat?"},
        {"speaker": "agent", "text": "Yes."},
        {"speaker": "user", "text": "When does it go?"},
    ],
    "contexts": [{"document_id": "1", "text": "\nThe boat goes at 8.\n"}, {"document_id": "2", "text": "It is fog."}],
    "targets": [{"text": " At 8. "}],
}


def lines(*records) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("text", "topics"),
    [
        (json.dumps(SQUAD), (HARBOUR,)),
        (json.dumps(SQUAD, indent=2), (HARBOUR,)),
        (json.dumps(ROWS), (HARBOUR,)),
        (lines(*ROWS), (HARBOUR,)),
        (
            lines(MARKED),
            (
                Topic(
                    "7",
                    ("The moat is by the mill.", "The bell is flat.", "Ada built the mill."),
                    (Question("Who built the mill by the moat?", ("Ada",), (0, 2)),),
                ),
            ),
        ),
        (
            "\n" + lines(TASK, TASK | {"contexts": TASK["contexts"][:1]}),
            (Topic("c, turn 3", ("The boat goes at 8.", "It is fog."), (Question("When does it go?", ("At 8.",)),)),),
        ),
    ],
    ids=["squad", "squad-indented", "rows", "row-lines", "marked", "conversations"],
)
def test_every_schema_is_told_by_its_content(tmp_path, text, topics, packed):
    path = tmp_path / "data.of-any-name"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert load_questions(path).topics == topics


@pytest.mark.parametrize(("file", "name"), [("a.b.jsonl.gz", "a.b"), ("set.json", "set"), ("plain", "plain")])
def test_a_set_is_called_by_its_file(tmp_path, file, name):
    (tmp_path / file).write_text(json.dumps(SQUAD))
    assert load_questions(str(tmp_path / file)).name == name
    assert load_questions(tmp_path / file, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("no json", "found at line 1"),
        (lines(MARKED) + "{broken\n", "found at line 2"),
        ('{\n "data": [\n  {,\n', "found at line 3"),
        (lines(MARKED, {"question": "q"}), "at line 2, answers: Field required"),
        (json.dumps({"data": [ARTICLE, {"paragraphs": 3}]}), "at record 1, paragraphs: Input should be a valid list"),
        (json.dumps({"cats": 1}), "found the fields cats"),
        (json.dumps([[1]]), "found list without fields"),
        ("3", "expected one list of records"),
        (json.dumps({"data": []}), "expected a record with passages"),
        (lines(TASK | {"contexts": []}), "expected a record with passages"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_questions(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "bytes", [b"\xff\xfe\x00", gzip.compress(b"{}" * 999, mtime=0)[:20], b"\x1f\x8bnot gzip at all"]
)
def test_files_that_are_no_text_are_refused(tmp_path, bytes):
    (tmp_path / "bad.gz").write_bytes(bytes)
    with pytest.raises(DataError, match="bad.gz"):
        load_questions(tmp_path / "bad.gz")


@pytest.mark.parametrize("source", ["nowhere.json", "no/such/folder/at all", Path("owner/name")])
def test_missing_files_are_not_looked_up_on_the_hub(source):
    with pytest.raises(DataError, match="found nothing there"):
        load_questions(source)


def test_a_folder_becomes_passages_of_paragraphs(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "two.MD").write_text("# Title\n\n" + "\n\n".join(["x" * 400, "y" * 400, "z" * 400]))
    (tmp_path / "one.txt").write_text("\ufeffOne.\n\nTwo.", encoding="utf-8")
    for name in (".hidden/a.txt", ".b.txt", "c.py"):
        (tmp_path / name).write_text("not read")
    (tmp_path / "empty.txt").write_text(" \n")
    topics = load_questions(tmp_path).topics
    assert [(topic.title, topic.questions) for topic in topics] == [("one.txt", ()), ("b/two.MD", ())]
    assert topics[0].passages == ("One.\n\nTwo.",)
    assert topics[1].passages == (f"# Title\n\n{'x' * 400}\n\n{'y' * 400}", "z" * 400)


def test_folders_without_text_and_texts_in_other_encodings_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a \.txt or \.md file with text"):
        load_questions(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Überfahrt".encode("latin-1"))
    with pytest.raises(DataError, match="byte 0"):
        load_questions(tmp_path)


def test_long_paragraphs_are_cut_at_sentences():
    sentences = [f"This is sentence number {n} of a paragraph that is long." for n in range(60)]
    passages = cut_passages(" ".join(sentences))
    assert all(passage.endswith("long.") for passage in passages)
    assert " ".join(passages) == " ".join(sentences)
    assert min(len(passage) for passage in passages[:-1]) > PASSAGE_CHARS - 60


@given(st.text(alphabet="ab.!? \n", max_size=400), st.integers(1, 50))
def test_no_passage_is_too_long_and_nothing_is_lost(text, chars):
    passages = cut_passages(text, chars)
    assert all(0 < len(passage) <= chars and passage == passage.strip() for passage in passages)
    assert len(set(passages)) == len(passages)
    assert {c for c in text if not c.isspace()} == {c for p in passages for c in p if not c.isspace()}


class Hub:
    """A stand-in for the `datasets` library."""

    def __init__(self, rows=None, error=None):
        self.rows, self.error, self.asked = rows, error, None

    def load_dataset(self, name, split):
        self.asked = (name, split)
        if self.error:
            raise self.error
        return self.rows


@pytest.mark.parametrize(("source", "asked"), [("a/b", ("a/b", "train")), ("a/b:dev", ("a/b", "dev"))])
def test_other_names_are_looked_up_on_the_hub(monkeypatch, source, asked):
    hub = Hub(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert load_questions(source).topics == (HARBOUR,)
    assert hub.asked == asked


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        (None, r"pip install 'kvrag\[train\]'"),
        (Hub(error=FileNotFoundError("no such data set")), "no such data set"),
        (Hub([{"text": "x"}]), r"found \['text'\] in row 0"),
        (Hub([]), "expected a row with a context"),
    ],
)
def test_what_is_wrong_with_the_hub_is_said(monkeypatch, hub, message):
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(DataError, match=message):
        load_questions("owner/name")
