"""`kvrag calibrate`: a verdict about one's own documents."""

import json

import pytest

from kvrag import strategies
from kvrag.reader import PromptReader
from tests.cli.test_errors import assert_fails
from tests.evaluation.test_calibrate import Forgetful

QUESTIONS = (
    "How many goats does the night boat carry?",
    "What was the school bell cast from?",
    "How is bread sold in the upper town?",
)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("\n\n".join(QUESTIONS) + "\n")
    return path


@pytest.fixture
def calibrate(kvrag, model, documents, build, questions):
    build(documents)

    def run(*options: object):
        return kvrag("calibrate", "--model", model, "--questions", questions, "--max-new-tokens", 4, *options)

    return run


def test_full_recompute_is_perfect(calibrate):
    result = calibrate("--strategy", "full-recompute", "--threshold", 0.2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("packets answer as full recompute does: first token equal in 3 of 3 ")
    assert lines[1] == "3 questions: KL 0.0000 nats per token of full recompute's answers, 0% of the rows from packets"
    assert len(lines) == 2


def test_a_broken_method_is_found_out_and_that_is_no_failure(calibrate, monkeypatch, tmp_path):
    known = strategies.available_strategies() | {"forgetful": Forgetful}
    monkeypatch.setattr(strategies, "available_strategies", lambda: known)
    result = calibrate("--strategy", "forgetful", "--threshold", 0.99, "--report", tmp_path / "report.md")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("not good enough: first token equal in 0 of 3 ")
    assert "the answers that differ most" in result.stdout
    assert all(question in (tmp_path / "report.md").read_text() for question in QUESTIONS)


def test_json_holds_every_question(calibrate):
    told = json.loads(calibrate("--json", "--limit", 2).stdout)
    assert (told["n"], told["left_out"], told["strategy"]) == (2, 0, "kv-packet")
    assert {q["question"] for q in told["questions"]} < set(QUESTIONS)
    assert 0 < told["cached"] < 1
    assert all(q["computed_tokens"] < q["prompt_tokens"] for q in told["questions"])
    assert told["verdict"] in {"bad", "unclear"}


def test_prompts_are_those_of_ask(calibrate, ask, monkeypatch):
    seen, read = [], PromptReader.read

    def listen(self, text, *others):
        seen.append(text)
        return read(self, text, *others)

    monkeypatch.setattr(PromptReader, "read", listen)
    assert calibrate("--top-k", 3).exit_code == 0
    compared = list(dict.fromkeys(seen))
    seen.clear()
    for question in QUESTIONS:
        ask(question, "--top-k", 3)
    assert compared == seen


def test_without_questions_the_model_writes_them(kvrag, model, documents, build):
    build(documents)
    result = kvrag("calibrate", "--model", model)
    assert_fails(result, 1, "to write questions about 5 chunks, found no line that ends in a question mark")


def test_written_questions_are_asked(calibrate, kvrag, model, monkeypatch):
    asked = []

    def write(engine, chunks, count, seed, advance):
        asked.append((len(chunks), count, seed))
        return list(QUESTIONS)

    monkeypatch.setattr("kvrag.evaluation.asking.write_questions", write)
    result = kvrag("calibrate", "--model", model, "--limit", 2, "--seed", 7, "--max-new-tokens", 2, "--json")
    assert json.loads(result.stdout)["n"] == 3
    assert asked == [(4, 2, 7)]
    assert "wrote 3 questions about 4 chunks" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why?\n  How? \n\nWhy?\n", ["Why?", "How?"]),
        ('["Why?", {"question": "How?"}]', ["Why?", "How?"]),
        ('{"question": "Why?", "id": 1}\n\n{"question": "How?"}\n', ["Why?", "How?"]),
    ],
)
def test_forms_of_question_files(tmp_path, text, expected):
    from kvrag.cli.question_file import read_questions

    path = tmp_path / "questions"
    path.write_text(text)
    assert read_questions(path) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "found none"),
        ("[1]", "found at entry 0 something else"),
        ('{"question": "Why?"}\n{"quest', "found at line 2"),
        ('{"ask": "Why?"}', "found at line 1 something else"),
        ("[", "found at the list"),
    ],
)
def test_files_that_hold_no_questions(calibrate, questions, text, part):
    questions.write_text(text)
    assert_fails(calibrate(), 1, part)


def test_wrong_usage(calibrate, kvrag, tmp_path):
    assert_fails(calibrate("--threshold", 2), 2, "--threshold")
    assert_fails(calibrate("--strategy", "magic"), 2, "expected a strategy out of")
    assert_fails(calibrate("--report", "no/such/report.md"), 2, "make it first")
    assert_fails(calibrate("--max-new-tokens", 4095), 1, "expected questions that fit into 4096 tokens")
    assert_fails(calibrate("--namespace", "empty", "--strategy", "full-recompute"), 1, "found none; build them")
    assert_fails(calibrate("--namespace", "empty"), 1, "found 5 in")
    assert_fails(kvrag("calibrate", "--questions", tmp_path / "nothing"), 2, "does not exist")
    assert_fails(kvrag("calibrate", "--store", tmp_path / "nothing"), 1, "run: kvrag build FOLDER")
