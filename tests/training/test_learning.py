"""An adapter learns to make packets answer like full recompute, and nothing else changes."""

import pytest
import torch

from kvrag.adapter import Adapter
from kvrag.errors import TrainingError
from kvrag.packed_rows import Branch, PromptTree
from kvrag.packet import PacketKey
from kvrag.prompt import PacketSegment, TextSegment
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training import AdapterShape, AdapterTask

from .toy_runs import EVERYTHING, equal, read_lines, toy_run, values

BEHIND_A_RULE = PromptTemplate("rule", (("", "The keeper who lit the lamp says:{context}\n{question}"),))
"""Full recompute reads a passage behind this sentence, packets do not: something that can be learned in a moment."""

PARTS = {
    "everything": EVERYTHING,
    "soft tokens": AdapterShape(header=3, trailer=2, writer_rank=0),
    "the writer": AdapterShape(header=0, trailer=0, writer_rank=4),
}


@pytest.mark.parametrize("parts", PARTS)
def test_the_held_out_divergence_falls(parts, new_model, tmp_path):
    def losses(folder: str, rate: float, **changes):
        task = AdapterTask(new_model(initializer_range=0.05), PARTS[parts])
        common = {"max_passages": 1, "metadata": 0, "longer_chunks": 0, "held_out": 8, "templates": [BEHIND_A_RULE]}
        rates = {"learning_rate": rate, "soft_learning_rate": rate}
        found = toy_run(task, tmp_path / folder, **common, **rates, **changes)
        return [loss for _, loss in found.trained.held_out]

    (untrained,) = losses("untrained", 1e-12, steps=1)
    *_, trained = losses("trained", 3e-3, steps=25, evaluate_every=25)
    assert trained < untrained / 3


def test_only_the_adapter_is_trained(new_model, tmp_path):
    model = new_model()
    module, identity = model._model, model.identity
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    task = AdapterTask(model, EVERYTHING)
    fresh = values(task)
    toy_run(task, tmp_path, steps=3)
    assert equal(dict(module.named_parameters()), before)
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    model.forget_identity()
    assert model.identity == identity
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())
    still = {name.split(".lora")[0] for name, p in task.parameters.items() if torch.equal(p, fresh[name])}
    behind = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert still == {f"writer.model.layers.2.{path}" for path in behind}  # nobody reads what comes of them in a chunk


def test_a_failing_step_leaves_no_hooks(new_model, tmp_path, monkeypatch):
    model = new_model()
    task = AdapterTask(model, EVERYTHING)
    monkeypatch.setattr(AdapterTask, "logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toy_run(task, tmp_path)
    assert not any(m._forward_hooks for m in model._model.modules())


def test_what_a_run_writes(new_model, tmp_path):
    task = AdapterTask(new_model(), EVERYTHING)
    result = toy_run(task, tmp_path, steps=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.safetensors",
        "checkpoint.safetensors",
        "log.jsonl",
        "run.json",
    ]
    assert [(line["step"], "held_out" in line) for line in read_lines(tmp_path)] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    saved = Adapter.load(result.path)
    assert equal(saved.tensors, {name: t.bfloat16() for name, t in result.trained.values.items()})
    assert (saved.header.weights, saved.header.writer_scale) == (task.model.identity.weights, task.writer.scale)


def test_an_adapter_may_begin_as_an_earlier_one(new_model, tmp_path):
    first = toy_run(AdapterTask(new_model(), EVERYTHING), tmp_path / "first", steps=2)
    second = AdapterTask(new_model(), EVERYTHING)
    second.begin_from(first.path)
    assert equal(values(second), {name: t.bfloat16().float() for name, t in first.trained.values.items()})
    with pytest.raises(TrainingError, match="nothing.*for link"):
        AdapterTask(new_model(), EVERYTHING.model_copy(update={"link": 0})).begin_from(first.path)
    with pytest.raises(TrainingError, match=r"writer\.model\.layers"):
        AdapterTask(new_model(num_hidden_layers=1), EVERYTHING).begin_from(first.path)


def test_an_adapter_may_begin_as_that_of_another_reader(new_model, tmp_path):
    first = toy_run(AdapterTask(new_model(), EVERYTHING), tmp_path / "first", steps=2)
    other = AdapterTask(new_model(seed=1), EVERYTHING)
    other.begin_from(first.path)
    assert equal(values(other), {name: t.bfloat16().float() for name, t in first.trained.values.items()})
    assert other.adapter(values(other)).header.weights == other.model.identity.weights


def test_labels_add_the_likelihood_of_the_answers_and_of_nothing_else(tiny):
    """Not that of the ends of questions, which are predicted too, be they as long as all or shorter."""
    branches = (Branch((3, 4, 5, 6, 7), (8, 9)), Branch((5, 10), (11, 12, 13)))
    tree = PromptTree((TextSegment((1, 2), 0, 0), PacketSegment(PacketKey("k"), (20, 21, 22), 0, 0)), branches)
    plain, labelled = (AdapterTask(tiny, EVERYTHING, question_tokens=2, labels=weight) for weight in (0.0, 0.25))
    batch = labelled.pack([tree, tree])
    with torch.no_grad(), plain.loss(batch) as alike, labelled.loss(batch) as both:
        logits = labelled.logits(batch.student)
    ids = batch.student.answer_ids.tolist()
    assert ids == 2 * [6, 7, 8, 9, 10, 11, 12, 13]
    likely = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
    of_answers = sum(likely[i] for i in (2, 3, 5, 6, 7, 10, 11, 13, 14, 15))
    assert both.item() == pytest.approx(alike.item() - 0.25 * of_answers.item(), rel=1e-5)


def test_an_adapter_without_parts_is_refused(tiny):
    with pytest.raises(TrainingError, match="at least one part"):
        AdapterTask(tiny, AdapterShape(header=0, trailer=0, link=0, writer_rank=0))
