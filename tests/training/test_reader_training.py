"""A reader learns given answers, and what is saved is what was trained, in peft's format."""

import peft
import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, LlamaConfig

from kvrag.batched import compute_rows, soft_table, writing
from kvrag.errors import TrainingError
from kvrag.merging import merge_reader
from kvrag.packed_rows import NO_ANSWER
from kvrag.sources import open_model
from kvrag.training import AdapterShape, ReaderTask, companion_adapter
from kvrag.training.data import Steps
from kvrag.training.examples import Batch
from kvrag.training.mixture import Mixture
from kvrag.writer import Writer
from tests.conftest import TINY, build_model

from .toy_runs import PLAIN, equal, toy_questions, toy_run, toy_settings, values

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks the old way
IDS = list(range(10, 60))


@pytest.fixture
def trained(tiny, tmp_path):
    """A task that was trained until it says something else, and what it wrote."""
    task = ReaderTask(tiny, 4)
    return task, toy_run(task, tmp_path / "run", steps=4, answers="given", learning_rate=0.02)


def test_the_held_out_loss_falls(new_model, tmp_path):
    def losses(folder: str, **changes):
        task = ReaderTask(new_model(), 4)
        options = {"answers": "given", "templates": [PLAIN], "max_passages": 1, "held_out": 8}
        return [loss for _, loss in toy_run(task, tmp_path / folder, **options, **changes).trained.held_out]

    (untrained,) = losses("untrained", steps=1, learning_rate=1e-12)
    *_, after = losses("trained", steps=25, evaluate_every=25, learning_rate=0.03)
    assert after < untrained - 2  # nats


def test_bare_chunks_take_their_share_of_the_loss(new_model):
    def loss(share: float) -> tuple[ReaderTask, Batch, float]:
        task = ReaderTask(new_model(), 4, share=share)
        settings = toy_settings(answers="given", min_passages=3)
        (batch,) = Steps(task, Mixture([(toy_questions(), 1.0)], settings, "training"), [PLAIN], settings).sample(1)
        with torch.no_grad(), task.loss(batch) as value:
            return task, batch, value.item()

    (_, together, full), (task, _, half), (_, _, alone) = loss(0.0), loss(0.5), loss(1.0)
    assert together.student is None
    assert half == pytest.approx((full + alone) / 2, rel=1e-5)
    assert alone != pytest.approx(full, rel=1e-4)
    recipe = task.strategy.recipe(task.placeholder)
    assert (recipe.dropped, recipe.ids_before) == (1, task.model.prompt_beginning(1))


def test_both_ways_of_reading_are_drawn_towards_each_other(new_model):
    """The loss grows by the mean of both divergences, and its slope is that of both passes."""
    tasks = [ReaderTask(new_model(), 4, share=0.5, agreement=agreement) for agreement in (0.0, 2.0)]
    settings = toy_settings(answers="given", min_passages=3)
    (batch,) = Steps(tasks[0], Mixture([(toy_questions(), 1.0)], settings, "training"), [PLAIN], settings).sample(1)

    def added(move: float = 0.0) -> float:
        losses = []
        for task in tasks:
            for name, p in task.parameters.items():
                p.data.add_(move * slope.get(name, 0.0))
            with task.loss(batch) as value:
                value.backward()
            for name, p in task.parameters.items():
                p.data.sub_(move * slope.get(name, 0.0))
            losses.append(value.item())
        return losses[1] - losses[0]

    slope: dict[str, torch.Tensor] = {}
    here, model = added(), tasks[0].model
    with torch.no_grad():  # a fresh reader changes nothing
        full, packets = (
            compute_rows(model, rows, None, rows.answer_rows)[0].double().log_softmax(-1)
            for rows in (batch.teacher, batch.student)
        )
    kept = (batch.teacher.answer_ids != NO_ANSWER)[:, None]
    both = sum(kl_div(a, b, log_target=True, reduction="none") * kept for a, b in ((full, packets), (packets, full)))
    assert both.sum() > 0.01
    assert here == pytest.approx(2 * both.sum().item() / 2, rel=1e-3)
    slope = {name: tasks[1].parameters[name].grad - p.grad for name, p in tasks[0].parameters.items()}
    steepness = sum(float((value**2).sum()) for value in slope.values())
    step = 0.01 / steepness**0.5
    assert (added(step) - added(-step)) / (2 * step) == pytest.approx(steepness, rel=0.02)


def test_a_companion_reads_as_it_was_learnt(tiny, hf_tokenizer, tmp_path):
    """Reader and adapter that learnt together, by hooks in training, and merged with the adapter beside it."""
    shape = AdapterShape(header=2, trailer=1, link=1, writer_rank=3)
    task = ReaderTask(tiny, 4, share=0.5, shape=shape)
    before = values(task)
    result = toy_run(task, tmp_path / "run", steps=4, answers="given", learning_rate=0.02, min_passages=2)
    rounded = {name: tensor.bfloat16().float() for name, tensor in result.trained.values.items()}
    unmoved = {name for name in rounded if torch.equal(rounded[name], before[name].bfloat16().float())}
    assert all(name.startswith("writer.model.layers.2.") for name in unmoved)  # of the last layer only keys and values
    for name, parameter in task.parameters.items():
        parameter.data.copy_(rounded[name])
    settings = toy_settings(answers="given", min_passages=2)
    (batch,) = Steps(task, Mixture([(toy_questions(), 1.0)], settings, "training"), [PLAIN], settings).sample(1)
    with torch.no_grad(), task.reader.active(tiny.linear_modules()), writing(tiny, task._parts.writer, batch.student):
        learnt = task._parts.logits(batch.student)
    build_model(LlamaConfig(**TINY)).save_pretrained(tmp_path / "base")
    hf_tokenizer.save_pretrained(tmp_path / "base")
    merge_reader(tmp_path / "base", result.path, tmp_path / "merged")
    merged = open_model(str(tmp_path / "merged"), "cpu", "float32")
    adapter = companion_adapter(result.path, merged)
    soft = soft_table(adapter, merged.device)
    with torch.no_grad(), writing(merged, adapter.writer, batch.student):
        served, _ = compute_rows(merged, batch.student, soft, batch.student.answer_rows)
    torch.testing.assert_close(served, learnt, atol=1e-4, rtol=1e-4)
    again = ReaderTask(tiny, 4, share=0.5, shape=shape)
    again.begin_from(result.path)
    assert equal(values(again), rounded)


def test_every_form_of_a_reader_says_the_same(trained, tiny, hf_tokenizer, tmp_path):
    """Hooks, peft, and merged files, in float32 from the bfloat16 numbers that were saved."""
    task, result = trained
    rounded = {name: tensor.bfloat16().float() for name, tensor in result.trained.values.items()}
    bare = tiny.plain_forward(IDS, range(len(IDS)))
    with Writer.from_named(rounded, 2.0, prefix="reader.writer.").active(tiny.linear_modules()):
        expected = tiny.plain_forward(IDS, range(len(IDS)))
    assert (expected - bare).abs().max() > 0.1
    ids = torch.tensor([IDS])
    wrapped = peft.PeftModel.from_pretrained(build_model(LlamaConfig(**TINY)), result.path)
    build_model(LlamaConfig(**TINY)).save_pretrained(tmp_path / "base")
    hf_tokenizer.save_pretrained(tmp_path / "base")
    merge_reader(tmp_path / "base", result.path, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        for model in (wrapped, merged):
            torch.testing.assert_close(model(ids).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_a_reader_may_begin_as_an_earlier_one(trained, tiny, new_model):
    _, result = trained
    again = ReaderTask(tiny, 4)
    again.begin_from(result.path)
    assert equal(values(again), {name: t.bfloat16().float() for name, t in result.trained.values.items()})
    with pytest.raises(TrainingError, match="begin from a result of the same shape"):
        ReaderTask(tiny, 8).begin_from(result.path)
    with pytest.raises(TrainingError, match="more that differ"):
        ReaderTask(new_model(num_hidden_layers=2), 4).begin_from(result.path)
    with pytest.raises(TrainingError, match="expected a reader in .*nowhere"):
        again.begin_from(result.path / "nowhere")


def test_a_reader_that_cannot_be_written_is_told(trained, tmp_path):
    task, result = trained
    (tmp_path / "reader").write_text("a file")
    with pytest.raises(TrainingError, match="expected a folder for the reader"):
        task.save(tmp_path, result.trained.values, "")
