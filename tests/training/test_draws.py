"""What a step trains on follows from its number, and every example can be answered."""

import random
import re

import pytest

from kvrag.packed_rows import PromptTree
from kvrag.prompt import PacketSegment, TextSegment
from kvrag.qa import Context, Question, QuestionSet, Topic
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training.data import Steps
from kvrag.training.examples import Grower
from kvrag.training.mixture import Mixture, merged, split
from tests.conftest import CHUNKS

from .toy_runs import CHAT, PLAIN, ScriptedTask, toy_questions, toy_settings

ASKS_FIRST = PromptTemplate("first", (("", "{question}\n{context}\nAnswer:"),))


def mixture(**changes) -> Mixture:
    return Mixture([(toy_questions("one"), 1), (toy_questions("two"), 3)], toy_settings(**changes), "any")


def test_the_same_number_gives_the_same_context_in_any_order():
    forward, backward = (mixture(metadata=0.5) for _ in range(2))
    numbers = list(range(40))
    found = {number: forward.context(number) for number in numbers}
    assert found == {number: backward.context(number) for number in reversed(numbers)}
    assert len(set(found.values())) > 35
    assert found[0] != mixture(metadata=0.5, seed=1).context(0)


def test_shares_say_how_often_a_set_is_drawn_from():
    both = Mixture([(toy_questions("one"), 1), (toy_questions("two"), 3)], toy_settings(metadata=0), "any")
    ones = {text for topic in toy_questions("one").topics for text in topic.passages}
    found = [any(text in ones for text in both.context(n).passages) for n in range(300)]
    assert 0.15 < sum(found) / 300 < 0.35


def test_processes_share_the_examples_of_one(tiny):
    settings = toy_settings(contexts=5, answers="given")
    task, parts = ScriptedTask(tiny), [(0, 1), (0, 2), (1, 2)]
    one, first, second = (Steps(task, mixture(), [PLAIN, CHAT], settings, *part) for part in parts)
    for step in (3, 0):
        whole, shares = one[step], [*first[step], *second[step]]
        told = [sorted(b.teacher.ids[b.teacher.answer_rows].tolist() for b in batches) for batches in (whole, shares)]
        assert sorted(sum(told[0], [])) == sorted(sum(told[1], []))
    assert len(one) == settings.steps


def test_a_prompt_that_asks_first_has_one_question(tiny):
    settings = toy_settings(contexts=6)
    steps = Steps(ScriptedTask(tiny), mixture(questions=3, max_passages=3), [CHAT, ASKS_FIRST], settings)
    trees = [tree for group in steps[0] for tree in group]
    asks_first = [tree for tree in trees if isinstance(tree.trunk[0], TextSegment) and len(tree.branches) == 1]
    assert len(trees) == 6
    assert len(asks_first) >= 3
    assert max(len(tree.branches) for tree in trees) > 1


def test_longer_chunks_are_neighbours_and_questions_find_them():
    data = toy_questions(passages=5)
    for run in (1, 2, 3):
        for topic, longer in zip(data.topics, merged(data, run).topics, strict=True):
            assert "\n\n".join(topic.passages) == "\n\n".join(longer.passages)
            assert [text.count("\n\n") for text in longer.passages][:-1] == [run - 1] * (len(longer.passages) - 1)
            for question, moved in zip(topic.questions, longer.questions, strict=True):
                (own,) = question.passages
                assert all(topic.passages[own] in longer.passages[n] for n in moved.passages)
                assert (moved.text, moved.answers, len(moved.passages)) == (question.text, question.answers, 1)
    several = QuestionSet("", (Topic("", tuple("abcdef"), (Question("?", (), (5, 1, 0)),)),))
    assert merged(several, 2).topics[0].questions[0].passages == (2, 0)
    assert merged(several, 3).topics[0].questions[0].passages == (1, 0)


def test_metadata_stands_in_front_of_every_chunk():
    plain, lined = ([mixture(metadata=share).context(n) for n in range(30)] for share in (0, 1))
    lines = re.compile(r"(page_label: \d+\n)?file_path: \w+/\w+-\d+\.(md|txt|html|pdf)\n\n")
    for bare, context in zip(plain, lined, strict=True):
        assert [lines.sub("", text, count=1) for text in context.passages] == list(bare.passages)
        assert all(lines.match(text) for text in context.passages)
        assert context.questions == bare.questions
    paged = [["page_label" in text for text in context.passages] for context in lined]
    assert {any(of_context) for of_context in paged} == {True, False}
    assert all(len(set(of_context)) == 1 for of_context in paged)


@pytest.mark.parametrize("seed", range(4))
def test_held_out_topics_are_never_trained_on(seed):
    data = toy_questions(topics=100)
    kept, aside = split(data, seed)
    assert {t.title for t in kept.topics}.isdisjoint(t.title for t in aside.topics)
    assert len(kept.topics) + len(aside.topics) == 100
    assert len(aside.topics) == 3
    assert split(data, seed) == (kept, aside)


@pytest.mark.parametrize(("topics", "each", "held"), [(9, 3, 9), (5, 1, 2), (1, 2, 1), (1, 200, 6), (1, 1, 0)])
def test_few_topics_hold_questions_out(topics, each, held):
    data = toy_questions(topics=topics, passages=each)
    kept, aside = split(data, 0)
    texts = [{q.text for topic in part.topics for q in topic.questions} for part in (data, kept, aside)]
    assert texts[0] == texts[1] | texts[2]
    assert not texts[1] & texts[2]
    assert len(aside) == held
    assert [t.passages for t in kept.topics] == [t.passages for t in aside.topics] == [t.passages for t in data.topics]


@pytest.mark.parametrize("asked", [1, 12])
def test_topics_without_questions_are_not_held_out_alone(asked):
    bare = tuple(Topic(f"bare {n}", (f"nothing {n}",)) for n in range(300))
    data = QuestionSet("sparse", bare + toy_questions(topics=asked).topics)
    kept, aside = split(data, 0)
    assert len(kept)
    assert len(aside)
    assert len(kept) + len(aside) == len(data)


def packets(tree: PromptTree) -> list[tuple[int, ...]]:
    return [segment.ids for segment in tree.trunk if isinstance(segment, PacketSegment)]


@pytest.mark.parametrize("needed", [(0,), (2, 1), (5,), ()])
def test_a_prompt_that_is_too_long_loses_passages_that_its_first_question_does_not_need(needed, tiny):
    others = tuple(Question(f"and number {n}?", ("no",), (n,)) for n in range(len(CHUNKS)))
    context = Context(CHUNKS, (Question("which?", ("that one",), needed), *others))
    (whole,) = Grower(tiny, 4000, 8).trees(context, PLAIN, answers=True)
    assert len(whole.branches) == 7
    sizes = set()
    for limit in range(100, whole.tokens, 25):
        for tree in Grower(tiny, limit, 8).trees(context, PLAIN, answers=True):
            assert tree.tokens <= limit
            texts = [tiny.tokenizer.decode(ids) for ids in packets(tree)]
            places = [CHUNKS.index(text) for text in texts]
            assert set(needed) <= set(places)
            asked = {tiny.tokenizer.decode(branch.ids) for branch in tree.branches}
            assert asked == {"\nwhich?", *(f"\nand number {n}?" for n in places)}
            sizes.add(len(places))
    assert len(sizes) >= 2


def test_a_prompt_that_needs_all_of_its_passages_is_left_out_when_it_is_too_long(tiny):
    context = Context(CHUNKS, (Question("which?", ("all",), tuple(range(6))), Question("one?", ("no",), (0,))))
    (tree,) = Grower(tiny, 4000, 8).trees(context, PLAIN, answers=True)
    assert Grower(tiny, tree.tokens, 8).trees(context, PLAIN, answers=True) == [tree]
    assert Grower(tiny, tree.tokens - 1, 8).trees(context, PLAIN, answers=True) == []


def test_prompts_leave_room_for_an_answer_in_the_context_window(new_model):
    model = new_model(max_position_embeddings=256)
    settings = toy_settings(min_passages=6, max_passages=6, max_tokens=3000, contexts=20)
    steps = Steps(ScriptedTask(model), mixture(min_passages=6, max_passages=6, longer_chunks=0), [PLAIN], settings)
    tokens = [tree.tokens for group in steps[0] for tree in group]
    assert 128 < max(tokens) <= 256 - settings.max_answer_tokens


def test_answers_continue_the_prompt_and_end(tiny):
    grower = Grower(tiny, 1000, 6)
    assert tiny.tokenizer.decode(grower.answer_ids("Answer:", " twelve ")[:-1]) == " twelve"
    assert tiny.tokenizer.decode(grower.answer_ids("Answer:\n", "goats")[:-1]) == "goats"
    long = grower.answer_ids("Answer:", "<|im_end|> is spelled in this answer")
    assert len(long) == 6
    assert tiny.end_id not in long[:-1]
    assert long[-1] == tiny.end_id


def test_questions_without_answers_are_left_out_where_answers_are_given(tiny):
    context = Context(CHUNKS[:2], (Question("which?", (), (0,)), Question("what?", ("goats",), (1,))))
    (tree,) = Grower(tiny, 1000, 6).trees(context, PLAIN, answers=True)
    assert [tiny.tokenizer.decode(branch.ids) for branch in tree.branches] == ["\nwhat?"]
    (tree,) = Grower(tiny, 1000, 6).trees(context, PLAIN, answers=False)
    assert [branch.answer for branch in tree.branches] == [(), ()]


def test_draws_need_no_global_randomness():
    random.seed(1)
    first = mixture().context(7)
    random.seed(2)
    assert mixture().context(7) == first
