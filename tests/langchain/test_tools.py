"""Tools: shown by the template or described, called in a certain form, answered in the history."""

import functools
import json
import operator
from collections.abc import Callable

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_kvrag import ChatKVRag
from langchain_kvrag.forms import hold_to
from langchain_kvrag.tools import CallReader, ToolForm, tool_form

from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from kvrag.model import LanguageModel
from tests.conftest import CHUNKS
from tests.langchain.bigrams import WORD

LLAMA = ToolForm("", "", "parameters")
QWEN = ToolForm()


@tool
def measure(place: str, times: int) -> str:
    """Measure a place."""
    return f"{place}: {times}"


@tool
def ring() -> str:
    """Ring the bell."""
    return "dong"


@pytest.fixture
def caller(tool_engine: PacketEngine) -> ChatKVRag:
    return ChatKVRag(engine=tool_engine, max_tokens=160)


def described(name: str, **properties: str) -> dict:
    schema = {
        "type": "object",
        "properties": {k: {"type": v} for k, v in properties.items()},
        "required": [*properties],
    }
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


async def test_calls_are_the_same_in_every_way_of_asking(caller: ChatKVRag):
    model = caller.bind_tools([measure, ring], tool_choice="measure")
    question = "Measure the moat."
    answers = [
        model.invoke(question),
        await model.ainvoke(question),
        functools.reduce(operator.add, list(model.stream(question))),
        functools.reduce(operator.add, [chunk async for chunk in model.astream(question)]),
    ]
    for answer in answers:
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("measure", {"place": WORD, "times": 3})
        assert call["id"].startswith("call_")
        assert answer.content == ""
        assert answer.invalid_tool_calls == []
        assert answer.usage_metadata == answers[0].usage_metadata
    assert len({answer.tool_calls[0]["id"] for answer in answers}) == len(answers)


def test_a_model_may_call_where_it_need_not_and_answers_text_where_it_must_not_call(caller: ChatKVRag):
    assert [call["name"] for call in caller.bind_tools([ring]).invoke("Ring.").tool_calls] == ["ring"]
    assert caller.bind_tools([ring], tool_choice="none").invoke("Ring.").tool_calls == []
    assert caller.invoke("Ring.").text


def test_several_calls_are_numbered_and_can_be_forbidden(caller: ChatKVRag):
    def go_on(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Makes an end of the answer less likely than anything else."""
        return scores - 5 * torch.isin(torch.arange(scores.shape[1]), torch.tensor([*caller.engine.model.stop_ids]))

    options = {"tool_choice": "any", "logits_processor": [go_on], "max_tokens": 200}
    several = list(caller.bind_tools([ring], parallel_tool_calls=True, **options).stream("Ring."))
    chunks = [chunk for part in several for chunk in part.tool_call_chunks]
    assert [chunk["index"] for chunk in chunks] == [*range(len(chunks))]
    assert len(chunks) > 1
    assert len(caller.bind_tools([ring], **options).invoke("Ring.").tool_calls) == 1


def test_a_call_that_was_cut_off_is_text_and_says_so(caller: ChatKVRag):
    model = caller.bind_tools([measure], tool_choice="any", max_tokens=20)
    for answer in (model.invoke("Measure."), functools.reduce(operator.add, list(model.stream("Measure.")))):
        assert answer.tool_calls == []
        assert answer.text.startswith("<tool_call>")
        assert answer.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(
    "choice", ["any", "required", True, "ring", {"type": "function", "function": {"name": "ring"}}]
)
def test_every_spelling_of_a_demand_makes_a_call(caller: ChatKVRag, choice):
    assert [c["name"] for c in caller.bind_tools([ring], tool_choice=choice).invoke("Hello").tool_calls] == ["ring"]


def test_a_tool_that_was_not_bound_cannot_be_demanded(caller: ChatKVRag):
    with pytest.raises(SettingsError, match=r"\['ring'\], found 'measure'"):
        caller.bind_tools([ring], tool_choice="measure")


def test_packets_are_found_in_what_a_tool_answered(caller: ChatKVRag):
    caller.engine.build(CHUNKS[:2], progress=False)
    asked = AIMessage("", tool_calls=[{"name": "look_up", "args": {"word": "bell"}, "id": "1", "type": "tool_call"}])
    history = [HumanMessage("Look it up."), asked, ToolMessage("\n\n".join(CHUNKS[:2]), tool_call_id="1")]
    answer = caller.bind_tools([ring]).invoke(history)
    packets = sum(caller.engine.count_tokens(text) for text in CHUNKS[:2])
    assert answer.usage_metadata["input_token_details"] == {"cache_read": packets}
    assert answer.tool_calls


def test_the_template_shows_tools_calls_and_answers(caller: ChatKVRag, monkeypatch):
    seen: list[str] = []
    stream = PacketEngine.stream
    monkeypatch.setattr(PacketEngine, "stream", lambda s, prompt, **o: seen.append(prompt) or stream(s, prompt, **o))
    asked = AIMessage("", tool_calls=[{"name": "ring", "args": {}, "id": "1", "type": "tool_call"}])
    caller.bind_tools([ring]).invoke(
        [HumanMessage("Ring."), asked, ToolMessage("dong", tool_call_id="1")], max_tokens=1
    )
    assert '"name": "ring", "description": "Ring the bell."' in seen[0]
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "ring", "arguments": {}}\n</tool_call><|im_end|>' in seen[0]
    assert "<|im_start|>tool\ndong<|im_end|>" in seen[0]


def test_a_template_without_tools_gets_them_as_text(chat: ChatKVRag, monkeypatch):
    seen: list = []
    stream = PacketEngine.stream
    monkeypatch.setattr(PacketEngine, "stream", lambda s, prompt, **o: seen.append(prompt) or stream(s, prompt, **o))
    assert tool_form(chat.engine.model) == ToolForm(native=False)
    asked = AIMessage("So.", tool_calls=[{"name": "ring", "args": {}, "id": "1", "type": "tool_call"}])
    history = [SystemMessage("Be loud."), HumanMessage("Ring."), asked, ToolMessage("dong", tool_call_id="1")]
    answer = chat.bind_tools([ring], tool_choice="any", max_tokens=100).invoke(history)
    assert [call["name"] for call in answer.tool_calls] == ["ring"]  # a random model, held to the form
    system, user, assistant, response = seen[0]
    assert system["content"].startswith('You can call these functions:\n{"name": "ring"')
    assert system["content"].endswith("\n\nBe loud.")
    assert user == {"role": "user", "content": "Ring."}
    assert assistant == {"role": "assistant", "content": f"So.\n{QWEN.write('ring', {})}"}
    assert response == {"role": "user", "content": "<tool_response>\ndong\n</tool_response>"}


def follows(model: LanguageModel, text: str, form: ToolForm, **options) -> bool:
    """Whether an answer may be this text, and end there."""
    tools = [described("measure", place="string", times="integer"), described("ring")]
    options = {"required": False, "several": True, "schema": None} | options
    (hold,) = hold_to(model, form, tools, **options)
    ids = [1]
    for token in [*model.tokenizer.encode(text), 2]:
        if hold(torch.tensor([ids]), torch.zeros(1, 512))[0, token] < 0:
            return False
        ids.append(token)
    return True


@pytest.mark.parametrize("form", [QWEN, LLAMA], ids=["tagged", "bare"])
def test_what_an_answer_may_be(tool_engine: PacketEngine, form: ToolForm):
    may = functools.partial(follows, tool_engine.model, form=form)
    called = form.write("measure", {"place": "moat", "times": 3})
    answer = '{"name": "no tool"}' if form.opening else '{"width": 3}'
    schema = {"type": "object", "properties": {"width": {"type": "integer"}}, "required": ["width"]}
    assert may("Twelve metres.")
    assert may(called)
    assert may(form.write("ring", {}))
    assert not may(form.write("dig", {}))
    assert not may(form.write("ring", {"loud": True}))
    assert not may(form.write("measure", {"place": "moat", "times": "often"}))
    assert not may("Twelve metres.", required=True)
    assert may(called, required=True)
    assert may(f"{called}\n{called}") is bool(form.opening)
    assert not may(f"{called}\n{called}", several=False)
    assert may("Well. " + called) is True  # with a tag a call, without one text
    assert may(called, schema=schema)
    assert may('{"width": 3}', schema=schema)
    assert not may('{"width": 3, "depth": 2}', schema=schema)
    assert not may("Twelve metres.", schema=schema)
    assert may(answer) is bool(form.opening)


@pytest.mark.parametrize("form", [QWEN, LLAMA], ids=["tagged", "bare"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_however_they_are_cut(form: ToolForm, size: int):
    def read(text: str) -> tuple[str, list]:
        reader = CallReader(form)
        parts = [part for at in range(0, len(text), size) for part in reader.push(text[at : at + size])]
        parts += reader.finish()
        return "".join(p for p in parts if isinstance(p, str)), [p["args"] for p in parts if not isinstance(p, str)]

    assert read("No call { at } all <tool") == ("No call { at } all <tool", [])
    nested = {"place": 'the "}" moat\n', "size": {"deep": [1, {"a": {}}]}}
    assert read(form.write("measure", nested)) == ("", [nested])
    assert read(form.write("measure", nested)[:-25])[1] == []
    if form.opening:
        text = f"Well.\n{form.write('a', {'n': 1})}\n{form.write('b', {'n': 2})}"
        assert read(text) == ("Well.\n", [{"n": 1}, {"n": 2}])
        assert read(form.write("measure", nested)[:30]) == (form.write("measure", nested)[:30], [])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('<tool_call>\n{{ "{" }}"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>', QWEN),
        ('{{ "{" }}"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}', LLAMA),
        ("<function={{ f.name }}></function>", ToolForm(native=False)),
    ],
)
def test_the_form_of_calls_is_read_from_the_template(hf_tokenizer, tiny: LanguageModel, written, expected, monkeypatch):
    template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}" + written + "{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(hf_tokenizer, "chat_template", template)
    assert tool_form(tiny) == expected


def test_without_the_library_the_error_names_the_extra(chat: ChatKVRag, new_engine: Callable, monkeypatch):
    import builtins
    import sys

    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("llguidance"):
            raise ModuleNotFoundError("No module named 'llguidance'", name="llguidance")
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "kvrag.grammar", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"kvrag\[structured\]"):
        chat.bind_tools([ring]).invoke("Ring.")
    assert json.dumps(chat.invoke("Hello", max_tokens=1).text)
