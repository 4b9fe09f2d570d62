"""`kvrag train`: from files of questions to an adapter or a reader."""

import json
from pathlib import Path

import pytest

from kvrag import PacketEngine, PacketStore
from kvrag.model import LanguageModel
from tests.cli.collections_of_files import BELLS, BOXES, BREAD, GOATS, LAMPS
from tests.cli.test_errors import assert_fails

TEXTS = {GOATS: ("How many goats?", "twelve"), BELLS: ("What is the bell cast from?", "two sunken anchors")}
TEXTS |= {LAMPS: ("Who lit it?", "a keeper"), BOXES: ("What string?", "green"), BREAD: ("By what length?", "an arm")}
ADAPTER = ("--soft", 2, "--link", 1, "--writer-rank", 2)


@pytest.fixture
def data(tmp_path) -> Path:
    """A file in SQuAD's form."""
    articles = [
        {"title": text[:9], "paragraphs": [{"context": text, "qas": [{"question": q, "answers": [{"text": a}]}] * 2}]}
        for text, (q, a) in TEXTS.items()
    ]
    path = tmp_path / "harbour.json"
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.fixture
def train(kvrag, model, data):
    """`kvrag train` with options that may be given again; the last one counts."""

    def run(kind: str, *options: object, files: tuple[object, ...] | None = None):
        given = [part for file in ((data,) if files is None else files) for part in ("--data", file)]
        common = ("--model", model, "--out", "out", "--device", "cpu", "--dtype", "float32")
        small = ("--steps", 2, "--contexts", 2, "--questions", 1, "--passages", "1-2", "--seed", 3)
        template = () if "--template" in options else ("--template", "raw")
        return kvrag("train", kind, *given, *common, *small, *template, *options)

    return run


def test_an_adapter_is_trained_and_answers(train, model):
    result = train("adapter", *ADAPTER, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    out = Path("out")
    assert set(told) == {"path", "steps", "best_step", "held_out_loss", "log", "picture"}
    assert (told["path"], told["steps"], told["best_step"]) == (str(out / "adapter.safetensors"), 2, 2)
    assert 0 < told["held_out_loss"] < 50
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    run = json.loads((out / "run.json").read_text())
    assert run["shape"] == {"header": 2, "trailer": 2, "link": 1, "writer_rank": 2, "sink": 1}
    assert (run["templates"], run["data"]["harbour"]) == (["raw"], {"questions": 10, "share": 1.0})
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    opened = LanguageModel.from_pretrained(model, device="cpu", dtype="float32")
    with (
        PacketStore("packets") as store,
        PacketEngine(opened, store=store, adapter=told["path"], strategy="kv-packet") as engine,
    ):
        engine.build([GOATS, LAMPS])
        answer = engine.generate(f"{GOATS}\n\n{LAMPS}\n\nHow many goats?", max_new_tokens=4)
    assert answer.usage.cached_tokens > 20
    assert len(answer.token_ids) > 0


def test_two_lines_for_people_name_the_files(train):
    result = train("adapter", *ADAPTER)
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("out/adapter.safetensors: held-out loss ")
    assert second == "log out/log.jsonl, picture out/loss.png"
    assert "training on harbour (10 questions) with 1 prompts" in result.stderr


def test_the_same_command_again_changes_nothing(train):
    first = train("adapter", *ADAPTER, "--json")
    before = {name: Path("out", name).read_bytes() for name in ("checkpoint.safetensors", "log.jsonl")}
    again = train("adapter", *ADAPTER, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert before == {name: Path("out", name).read_bytes() for name in before}
    other = train("adapter", *ADAPTER, "--rate", 0.5)
    assert_fails_after_loading(other, 1, "found one of other data, model or settings")
    assert before == {name: Path("out", name).read_bytes() for name in before}


def test_a_run_begins_with_the_result_of_another(train):
    assert train("adapter", *ADAPTER).exit_code == 0
    first = "out/adapter.safetensors"
    result = train("adapter", *ADAPTER, "--init", first, "--out", "second")
    assert result.exit_code == 0, result.stderr
    result = train("adapter", *ADAPTER, "--soft", 3, "--init", first, "--out", "third")
    assert_fails_after_loading(result, 1, "begin from a result of the same shape")


def test_a_reader_is_trained_and_merged(train):
    options = ("--rank", 2, "--pattern", "kv-packet", "--json")
    result = train("reader", *options)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["path"] == "out/reader"
    assert sorted(path.name for path in Path(told["path"]).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "companion.safetensors",
    ]
    again = train("reader", *options)
    assert json.loads(again.stdout) == told
    adapter = train("adapter", "--model", "out/merged", "--init", "out/adapter.safetensors", "--out", "adapter")
    assert adapter.exit_code == 0, adapter.stderr


@pytest.mark.parametrize(("pattern", "files"), [("full", 2), ("bare", 2), ("kvlink", 3), ("kv-packet", 3)])
def test_a_reader_learns_with_a_pattern(pattern, files, train):
    result = train("reader", "--rank", 2, "--pattern", pattern)
    assert result.exit_code == 0, result.stderr
    assert len(list(Path("out/reader").iterdir())) == files
    assert Path("out/adapter.safetensors").exists() == (files == 3)


def test_readings_that_agree_need_two(train):
    assert train("reader", "--rank", 2, "--pattern", "bare", "--agreement", 2).exit_code == 0
    described = json.loads(Path("out/run.json").read_text())
    assert described["agreement"] == 2
    assert_fails(train("reader", "--pattern", "full", "--agreement", 2, "--out", "other"), 2, "--pattern")


def test_the_model_asks_where_nobody_did(train, model, tmp_path, monkeypatch):
    from kvrag.training import writing

    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    monkeypatch.setattr(writing, "_question", lambda text: f"What is {len(text)}, asked by the model?")
    result = train("adapter", *ADAPTER, files=(folder,))
    assert result.exit_code == 0, result.stderr
    assert f"{model.name} writes questions about texts" in result.stderr
    result = train("adapter", *ADAPTER, "--answers", "given", "--author", model, "--out", "other", files=(folder,))
    assert result.exit_code == 0, result.stderr


def test_an_author_without_work_is_named(train, model):
    result = train("adapter", *ADAPTER, "--author", model)
    assert result.exit_code == 0, result.stderr
    assert "warning: --author has nothing to write" in result.stderr


@pytest.fixture
def built(kvrag, model, tmp_path, monkeypatch) -> Path:
    """A store of packets, and a model that has something to ask about each."""
    from kvrag.training import writing

    monkeypatch.setattr(writing, "_question", lambda text: f"What is {len(text)}, asked by the model?")
    opened = LanguageModel.from_pretrained(model, device="cpu", dtype="float32")
    with (
        PacketStore(tmp_path / "packets") as store,
        PacketEngine(opened, store=store, adapter="none", strategy="no-recompute") as engine,
    ):
        engine.build(list(TEXTS), progress=False)
    return tmp_path / "packets"


def test_an_adapter_learns_from_the_chunks_of_a_store(train, built, monkeypatch):
    result = train("adapter", *ADAPTER, "--from", built, files=())
    assert result.exit_code == 0, result.stderr
    run = json.loads(Path("out/run.json").read_text())
    assert list(run["data"]) == ["stored"]
    assert (run["settings"]["longer_chunks"], run["settings"]["metadata"]) == (0, 0)
    monkeypatch.setattr("kvrag.sources.shipped_adapter", lambda model: Path("out/adapter.safetensors"))
    going_on = train("adapter", *ADAPTER, "--from", built, "--out", "more", files=())
    assert going_on.exit_code == 0, going_on.stderr
    afresh = train("adapter", *ADAPTER, "--soft", 3, "--from", built, "--out", "other", files=())
    assert afresh.exit_code == 0, afresh.stderr
    assert "begins afresh" in afresh.stderr
    assert "begins afresh" not in going_on.stderr
    begins = [json.loads((Path(out) / "log.jsonl").read_text().splitlines()[0])["loss"] for out in ("out", "more")]
    assert begins[0] != begins[1]


def test_a_store_and_files_are_mixed(train, built):
    result = train("adapter", *ADAPTER, "--from", built)
    assert result.exit_code == 0, result.stderr
    run = json.loads(Path("out/run.json").read_text())
    assert list(run["data"]) == ["harbour", "stored"]
    assert run["settings"]["longer_chunks"] > 0


def test_sets_are_mixed_by_their_shares(train, monkeypatch):
    monkeypatch.setattr("kvrag.cli.training_run._GENERATED", 12)
    result = train("adapter", *ADAPTER, files=("harbour.json=2.5", "records=0.5"))
    assert result.exit_code == 0, result.stderr
    told = json.loads(Path("out/run.json").read_text())["data"]
    assert {name: questions["share"] for name, questions in told.items()} == {"harbour": 2.5, "records": 0.5}


def test_sets_of_the_same_name_are_told_apart(train, data, tmp_path):
    other = tmp_path / "other" / "harbour.json"
    other.parent.mkdir()
    other.write_bytes(Path("harbour.json").read_bytes())
    result = train("adapter", *ADAPTER, files=("harbour.json=2", f"{other}=0.5"))
    assert result.exit_code == 0, result.stderr
    told = json.loads(Path("out/run.json").read_text())["data"]
    assert {name: questions["share"] for name, questions in told.items()} == {"harbour": 2, "harbour-2": 0.5}


def test_a_missing_beginning_is_noticed_before_the_model_is_loaded(train):
    result = train("adapter", *ADAPTER, "--init", "nowhere.safetensors")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected the result of an earlier run at nowhere.safetensors" in result.stderr


def test_neither_data_nor_a_store_is_refused(train):
    assert_fails(train("adapter", *ADAPTER, files=()), 2, "expected --data with what to train on, or --from")


def test_a_store_that_is_none_is_refused(train):
    assert_fails(train("adapter", *ADAPTER, "--from", "nowhere", files=()), 1, "found no such folder")


def assert_fails_after_loading(result, code: int, part: str) -> None:
    *notes, error = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, "")
    assert error.startswith("error: ")
    assert part in error
    assert all(line.startswith("training on ") for line in notes)


@pytest.mark.parametrize("kind", ["adapter", "reader"])
@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--template", "runes"], 2, "expected the name of a template"),
        (["--passages", "some"], 2, "a number or a range such as 1-12"),
        (["--passages", "5-2"], 2, "min_passages 5 is greater than max_passages 2"),
        (["--passages", "0"], 2, "min_passages"),
        (["--steps", "0"], 2, "--steps"),
        (["--rate", "-1"], 2, "learning_rate, found -1"),
        (["--micro-tokens", "-5"], 2, "--micro-tokens"),
        (["--data", "nowhere.json"], 1, "expected a file or a folder at nowhere.json"),
        (["--data", "harbour.json=much"], 1, "harbour.json=much"),
        (["--out", "harbour.json"], 2, "--out"),
    ],
)
def test_what_is_wrong_costs_no_model(kind, train, monkeypatch, options, code, part):
    monkeypatch.setattr("kvrag.sources.open_model", lambda *arguments: pytest.fail("a model was loaded"))
    assert_fails(train(kind, *options), code, part)


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--answers", "nonsense"], 2, "answers, found 'nonsense'"),
        (["--soft-rate", "0"], 2, "soft_learning_rate"),
    ],
)
def test_adapters_that_cannot_be_cost_no_model(train, monkeypatch, options, code, part):
    monkeypatch.setattr("kvrag.sources.open_model", lambda *arguments: pytest.fail("a model was loaded"))
    assert_fails(train("adapter", *options), code, part)


def test_data_and_a_folder_are_asked_for(kvrag, data):
    assert_fails(kvrag("train", "adapter", "--out", "out"), 2, "--data")
    assert_fails(kvrag("train", "reader", "--data", data), 2, "--out")
    assert_fails(kvrag("train"), 2, "Missing command")


def test_questions_without_answers_train_no_reader(train, tmp_path):
    path = tmp_path / "asked.jsonl"
    docs = [{"text": text, "gold": text == GOATS} for text in (GOATS, LAMPS)]
    path.write_text("\n".join(json.dumps({"question": f"What {n}?", "answers": [], "docs": docs}) for n in range(4)))
    assert_fails_after_loading(train("reader", files=(path,)), 1, "no question has an answer")


def test_a_reader_is_not_trained_on_its_own_answers(train, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text(LAMPS)
    result = train("reader", "--rank", 2, files=(folder,))
    assert_fails_after_loading(result, 1, "expected questions with answers to train a reader on, found none in texts")


def test_labels_are_given_answers(train):
    result = train("adapter", *ADAPTER, "--labels", 0.5)
    assert_fails(result, 2, "expected --answers given with --labels")
    assert train("adapter", *ADAPTER, "--labels", 0.5, "--answers", "given").exit_code == 0
    assert json.loads(Path("out/run.json").read_text())["labels"] == 0.5


def test_an_adapter_with_another_sink_is_no_beginning(train):
    assert train("adapter", *ADAPTER, "--sink", 0).exit_code == 0
    result = train("adapter", *ADAPTER, "--init", "out/adapter.safetensors", "--out", "second")
    assert_fails_after_loading(result, 1, "give the --sink that it was trained with")
