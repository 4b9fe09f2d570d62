"""What is wrong is told by name, and what was kept stays."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from kvrag.errors import AdapterError, DataError, PromptTooLongError, TrainingError
from kvrag.qa import Question, QuestionSet, Topic
from kvrag.training import AdapterShape, AdapterTask, ReaderTask
from kvrag.training.checkpoint import Checkpoint, write_whole
from kvrag.training.data import Steps
from kvrag.training.examples import Grower
from kvrag.training.log import RunLog
from kvrag.training.mixture import Mixture

from .toy_runs import CHAT, EVERYTHING, PLAIN, ScriptedTask, equal, read_lines, toy_questions, toy_run, toy_settings


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def begun(tiny, tmp_path):
    """A run that was stopped after 2 of 4 steps."""
    toy_run(AdapterTask(tiny, EVERYTHING), tmp_path, until=2)
    return tmp_path


def test_data_without_questions(tiny, tmp_path):
    nothing = QuestionSet("silence", (Topic("one", ("a passage",)),))
    with pytest.raises(DataError, match="found none for the training part in silence"):
        toy_run(ScriptedTask(tiny), tmp_path, questions=nothing)
    one = QuestionSet("lonely", (Topic("one", ("a passage",), (Question("what?", ("that",)),)),))
    with pytest.raises(DataError, match="found none for the held out part in lonely"):
        toy_run(ScriptedTask(tiny), tmp_path, questions=one)


def test_no_templates(tiny, tmp_path):
    with pytest.raises(TrainingError, match="at least one template"):
        toy_run(ScriptedTask(tiny), tmp_path, templates=[])


def test_given_answers_where_there_are_none(tiny, tmp_path):
    with pytest.raises(TrainingError, match="expected answers to predict.*no question has an answer"):
        toy_run(ReaderTask(tiny, 2), tmp_path, questions=toy_questions(answers=False), answers="given")


@pytest.mark.parametrize("answers", ["given", "teacher"])
def test_contexts_of_which_none_fits(answers, tiny, tmp_path):
    long = QuestionSet("long", tuple(Topic("", ("bell " * 90,), (Question("?", ("a",), (0,)),) * 2) for _ in range(12)))
    with pytest.raises(TrainingError, match="fits into max_tokens 64"):
        toy_run(ReaderTask(tiny, 2), tmp_path, questions=long, answers=answers, max_tokens=64)


def test_a_passage_longer_than_the_context_window(new_model, tmp_path):
    model = new_model(max_position_embeddings=128)
    topics = tuple(Topic("", (f"lamp {t}" + " bell" * 90,), (Question("?", ("a",), (0,)),)) for t in range(12))
    with pytest.raises(PromptTooLongError, match="fewer than 128 tokens.*begins 'lamp"):
        toy_run(AdapterTask(model, EVERYTHING), tmp_path, questions=QuestionSet("long", topics))


def test_an_error_in_a_step_is_told_by_its_own_message(tiny, monkeypatch):
    steps = Steps(ScriptedTask(tiny), Mixture([(toy_questions(), 1)], toy_settings(), "any"), [PLAIN], toy_settings())
    trees, seen = Grower.trees, []

    def refuse(*given, **options):
        seen.append(1)
        if len(seen) > 6:
            raise PromptTooLongError("this passage")
        return trees(*given, **options)

    monkeypatch.setattr(Grower, "trees", refuse)
    loaded = steps.loaded(0)
    assert next(loaded)
    with pytest.raises(PromptTooLongError, match="^this passage$"):
        next(loaded)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(begun, tiny, monkeypatch):
    kept = (begun / "checkpoint.safetensors").read_bytes()
    logits = AdapterTask.logits
    monkeypatch.setattr(AdapterTask, "logits", lambda *given: logits(*given) * torch.nan)
    with pytest.raises(TrainingError, match="finite loss, found nan.*in step 3.*lower the learning rate"):
        toy_run(AdapterTask(tiny, EVERYTHING), begun)
    assert (begun / "checkpoint.safetensors").read_bytes() == kept
    assert Checkpoint.load(begun / "checkpoint.safetensors").step == 2
    monkeypatch.undo()
    toy_run(AdapterTask(tiny, EVERYTHING), begun)
    assert [line["step"] for line in read_lines(begun) if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize(("steps", "message"), [(2, "finite loss"), (1, "finite held-out loss.*after step 1")])
def test_a_learning_rate_beyond_reason(steps, message, tiny, tmp_path):
    with pytest.raises(TrainingError, match=message):
        toy_run(AdapterTask(tiny, EVERYTHING), tmp_path, steps=steps, learning_rate=1e30, checkpoint_every=1)
    if steps == 2:
        assert Checkpoint.load(tmp_path / "checkpoint.safetensors").step == 1
    assert not (tmp_path / "adapter.safetensors").exists()


@pytest.mark.parametrize("change", ["settings", "data", "templates", "model", "shape"])
def test_a_checkpoint_of_another_run(change, begun, new_model, tiny):
    model = new_model(seed=1) if change == "model" else tiny
    shape = AdapterShape(header=3, trailer=2, writer_rank=4) if change == "shape" else EVERYTHING
    changes = {
        "settings": {"seed": 1},
        "data": {"questions": toy_questions("other")},
        "templates": {"templates": [replace(PLAIN, separator=" "), CHAT]},
    }
    kept = (begun / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors, found one of other data, model or settings"):
        toy_run(AdapterTask(model, shape), begun, **changes.get(change, {}))
    assert (begun / "checkpoint.safetensors").read_bytes() == kept


def test_how_often_a_run_is_kept_does_not_make_it_another(begun, tiny):
    assert toy_run(AdapterTask(tiny, EVERYTHING), begun, checkpoint_every=3, patience=9) is not None


def test_a_checkpoint_that_cannot_be_read(begun, tiny):
    path = begun / "checkpoint.safetensors"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:20], b""):
        path.write_bytes(broken)
        with pytest.raises(TrainingError, match=r"checkpoint\.safetensors, found a file that cannot be read"):
            toy_run(AdapterTask(tiny, EVERYTHING), begun)
        assert path.read_bytes() == broken
    for told in (None, {"kvrag_checkpoint": "[]"}, {"kvrag_checkpoint": '{"step": 1}'}, {"kvrag_checkpoint": "{"}):
        save_file({"value/header": torch.zeros(1), "odd": torch.zeros(1)}, path, told)
        with pytest.raises(TrainingError, match="cannot be read"):
            toy_run(AdapterTask(tiny, EVERYTHING), begun)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(call, begun, tiny, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before, kept = files(begun), Checkpoint.load(begun / "checkpoint.safetensors")
    add = RunLog.add
    monkeypatch.setattr(
        RunLog, "add", lambda *given, **told: (add(*given, **told), monkeypatch.setattr(os, call, full))
    )
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors, found.*No space left.*goes on"):
        toy_run(AdapterTask(tiny, EVERYTHING), begun)
    assert files(begun) == before
    found = Checkpoint.load(begun / "checkpoint.safetensors")
    assert (found.step, found.run) == (2, kept.run)
    assert equal(found.values, kept.values)
    monkeypatch.undo()
    assert toy_run(AdapterTask(tiny, EVERYTHING), begun).trained.steps == 4


def test_a_log_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"expected to write .*log\.jsonl"):
        toy_run(ScriptedTask(tiny), tmp_path, answers="given")
    log = RunLog(tmp_path / "other.jsonl", 0)
    (tmp_path / "other.jsonl").unlink()
    (tmp_path / "other.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"expected to write .*other\.jsonl"):
        log.add(step=1)


def test_what_a_killed_write_left_is_removed(tmp_path):
    for name in (".run.json.0123456789abcdef", ".other.json.0123456789abcdef"):
        (tmp_path / name).write_text("half")
    write_whole(tmp_path / "run.json", b"{}")
    assert files(tmp_path) == [".other.json.0123456789abcdef", "run.json"]


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="choose another --out"):
        toy_run(ScriptedTask(tiny), tmp_path / "file" / "folder", answers="given")


def test_an_adapter_of_another_model(tiny, tmp_path, new_engine):
    path = toy_run(AdapterTask(tiny, EVERYTHING), tmp_path / "run", steps=1).path
    with pytest.raises(AdapterError, match="weights differ"):
        new_engine(seed=1, adapter=path, strategy="kv-packet")
