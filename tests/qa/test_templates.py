import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvrag.errors import DataError, PromptError, SettingsError
from kvrag.qa.templates import (
    HELD_OUT,
    TEMPLATES,
    FilledPrompt,
    PromptTemplate,
    dump_templates,
    load_templates,
    template_from_name,
)
from tests.conftest import CHAT_TEMPLATE

EVERY = [*TEMPLATES, HELD_OUT]
TRIMMING = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
MERGING = (  # as templates do that know no system messages
    "{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>"
    "{{ first if loop.index0 < 2 else '' }}{{ m['content'] }}{% endif %}{% endfor %}"
)
LOOKING = (  # some look into a message before they write what stands in front of it
    "{% for m in messages %}{{ '<tool>' if m['content'].startswith('1') else '<user>' }}{{ m['content'] }}{% endfor %}"
)
PIECES = st.sampled_from(
    [
        "{",
        "}",
        "{context}",
        "{question}",
        "{passage}",
        "{number}",
        "{}",
        "%s",
        "\\1",
        "\n",
        "\n\n",
        " ",
        "a",
        "1",
        "- ",
        "[1]",
    ]
    + [
        "Question: ",
        "Sources",
        "\n---\n",
        "</document>",
        "Short answer",
        "Ü",
        "\ue000",
        "<|im_end|>",
        "Notes:\n",
        "{{x}}",
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)
PASSAGES = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def render(hf_tokenizer):
    """The chat template of a tokenizer, or another one."""

    def apply(messages, template=None):
        return hf_tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )

    return apply


def spanned(filled: FilledPrompt) -> list[str]:
    return [filled.text[start:end] for start, end in filled.spans]


@pytest.mark.parametrize("chat_template", [None, TRIMMING, MERGING, LOOKING], ids=["plain", "trim", "merge", "look"])
@given(template=st.sampled_from(EVERY), passages=PASSAGES, question=TEXTS)
@example(template=TEMPLATES[0], passages=["a", "a", "a a", "a"], question="a")
@example(template=template_from_name("numbered"), passages=["1", "2", "[3] 3"], question="[1] 1")
@example(template=template_from_name("system-context-lines"), passages=["1", "Everything above"], question="1")
def test_spans_are_the_passages_in_their_order(render, chat_template, template, passages, question):
    filled = template.fill(lambda messages: render(messages, chat_template), passages, question)
    assert spanned(filled) == [passage.strip() for passage in passages]
    ends = [0, *(end for _, end in filled.spans)]
    assert all(start >= end for (start, _), end in zip(filled.spans, ends, strict=False))


@given(template=st.sampled_from(EVERY), passages=PASSAGES, question=TEXTS)
def test_a_prompt_is_what_filling_by_hand_gives(render, template, passages, question):
    one_by_one = (
        template.passage.partition("{passage}")[0].replace("{number}", str(n))
        + passage.strip()
        + template.passage.partition("{passage}")[2].replace("{number}", str(n))
        for n, passage in enumerate(passages, 1)
    )
    context = template.separator.join(one_by_one)
    contents = []
    for role, content in template.messages:
        parts = [part.split("{question}") for part in content.split("{context}")]
        contents.append((role, context.join(question.join(part) for part in parts)))
    expected = render([{"role": r, "content": c} for r, c in contents]) if contents[0][0] else contents[0][1]
    assert template.fill(render, passages, question).text == expected


def test_the_span_stands_where_the_marker_stood(render):
    template = PromptTemplate("t", (("system", "Fog. Fog and boats."), ("user", "{question} {context}")))
    filled = template.fill(render, ["Fog", "Fog and", "Fog"], "Fog?")
    assert filled.spans[0][0] == filled.text.rindex("Fog? Fog") + len("Fog? ")
    assert spanned(filled) == ["Fog", "Fog and", "Fog"]
    (only,) = template.fill(render, ["Fog"], "Fog?").spans
    assert only == filled.spans[0]


def test_what_a_chat_template_trims_is_not_counted(render):
    template = PromptTemplate("t", (("user", "{context} "), ("user", "{question}")), passage="\n{number} {passage}\n")
    filled = template.fill(lambda messages: render(messages, TRIMMING), ["1", "1"], "?")
    assert filled.text.startswith("<|im_start|>user\n1 1\n\n\n\n2 1<|im_end|>")
    assert filled.spans == ((19, 20), (26, 27))


def test_the_model_renders_too(tiny):
    filled = template_from_name("chat").fill(tiny.render, [" One. ", "Two."], "Which?")
    assert spanned(filled) == ["One.", "Two."]
    assert filled.text.endswith("One.\n\nTwo.\n\nWhich?<|im_end|>\n<|im_start|>assistant\n")


def test_no_passages_give_no_spans(render):
    assert all(not template.fill(render, [], "Why?").spans for template in EVERY)


def test_a_raw_template_takes_no_chat_template():
    filled = template_from_name("raw").fill(lambda messages: pytest.fail("rendered"), ["x"], "?")
    assert filled.text.startswith("x\n\nQuestion: ?")


def test_passages_that_do_not_survive_are_reported(render):
    with pytest.raises(PromptError, match="changed by the chat template"):
        template_from_name("chat").fill(lambda messages: render(messages).upper(), ["small"], "?")
    with pytest.raises(PromptError, match="passage 2 empty"):
        template_from_name("chat").fill(render, ["x", " \n"], "?")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": (("user", "{question}"),)}, "found 0 and 1"),
        ({"messages": (("user", "{context}"),)}, "found 1 and 0"),
        ({"messages": (("user", "{context}{question}"), ("user", "{context}"))}, "found 2 and 1"),
        ({"messages": (("", "{context}"), ("user", "{question}"))}, "a mixture"),
        ({"messages": (("", "{context}{question}"),), "passage": "{number}"}, "one {passage}"),
    ],
)
def test_templates_without_their_markers_are_refused(fields, message):
    with pytest.raises(PromptError, match=message):
        PromptTemplate("t", **fields)


@pytest.mark.parametrize(
    ("content", "last"),
    [("{context} {question}", True), ("{question} {context}", False), ("{question} {context} {question}", False)],
)
def test_where_the_question_stands_is_known(content, last):
    assert PromptTemplate("t", (("user", content),)).asks_last is last
    assert PromptTemplate("t", (("user", content), ("assistant", ""))).asks_last is last


def test_own_templates_are_varied_and_the_held_out_one_is_not_among_them():
    names = [template.name for template in EVERY]
    assert len(set(names)) == len(names) >= 12
    assert len({template.separator for template in TEMPLATES}) >= 4
    assert {True, False} == {template.asks_last for template in TEMPLATES}
    assert any("{number}" in template.passage for template in TEMPLATES)
    assert {"", "system", "assistant"} <= {role for template in TEMPLATES for role, _ in template.messages}
    assert not any("<document" in template.passage for template in TEMPLATES)


def test_templates_are_found_by_name():
    assert [template_from_name(template.name) for template in EVERY] == EVERY
    with pytest.raises(SettingsError, match="'chta'"):
        template_from_name("chta")


def test_a_file_keeps_templates(tmp_path):
    dump_templates(EVERY, tmp_path / "t.json")
    assert load_templates(tmp_path / "t.json") == tuple(EVERY)


def test_a_file_may_leave_out_what_has_a_default(tmp_path):
    (tmp_path / "t.json").write_text('[{"name": "t", "messages": [["user", "{context} {question}"]]}]')
    assert load_templates(tmp_path / "t.json") == (PromptTemplate("t", (("user", "{context} {question}"),)),)


GOOD = {"name": "t", "messages": [["user", "{context} {question}"]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "Invalid JSON"),
        ("{}", "valid array"),
        ("[]", "found none"),
        (json.dumps([GOOD, GOOD]), "several called 't'"),
        (json.dumps([GOOD | {"seperator": ""}]), "0.seperator"),
        (json.dumps([{"name": "t"}]), "0.messages"),
        (json.dumps([GOOD | {"messages": [["user", "{context}"]]}]), "found 1 and 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_templates(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_opened_are_reported(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_templates(tmp_path / "none.json")
    with pytest.raises(DataError, match="No such file"):
        dump_templates(EVERY, tmp_path / "none" / "t.json")
