"""Objects as answers."""

import json

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_kvrag import ChatKVRag
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from tests.conftest import CHUNKS
from tests.langchain.bigrams import WORD

QUESTION = f"{CHUNKS[0]}\n\nWhat does it say?"


class Place(BaseModel):
    """A place."""

    name: str = Field(description="what people call it")
    size: int


class PlaceDict(TypedDict):
    """A place."""

    name: str
    size: int


@pytest.fixture
def writer(tool_engine: PacketEngine) -> ChatKVRag:
    return ChatKVRag(engine=tool_engine, max_tokens=120)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Place, PlaceDict, Place.model_json_schema()], ids=["pydantic", "typeddict", "json"])
async def test_objects_of_every_kind_of_schema(writer: ChatKVRag, schema, method: str):
    model = writer.with_structured_output(schema, method=method)
    expected = Place(name=WORD, size=3) if schema is Place else {"name": WORD, "size": 3}
    assert model.invoke(QUESTION) == expected
    assert await model.ainvoke(QUESTION) == expected
    assert list(model.stream(QUESTION))[-1] == expected


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_the_message_behind_an_object_tells_its_hits(writer: ChatKVRag, method: str):
    writer.engine.build(CHUNKS[:1], progress=False)
    answer = writer.with_structured_output(Place, method=method, include_raw=True).invoke(QUESTION)
    assert answer["parsed"] == Place(name=WORD, size=3)
    assert answer["parsing_error"] is None
    assert isinstance(answer["raw"], AIMessage)
    packet = writer.engine.count_tokens(CHUNKS[0])
    assert answer["raw"].usage_metadata["input_token_details"] == {"cache_read": packet}


def test_any_model_is_held_to_the_schema(chat: ChatKVRag):
    """This one is random."""
    schema = {
        "title": "sizes",
        "type": "object",
        "properties": {"kind": {"enum": ["moat", "wall"]}, "wet": {"type": "boolean"}},
        "required": ["kind", "wet"],
    }
    found = chat.with_structured_output(schema, max_tokens=60, temperature=1.0, seed=1).invoke(QUESTION)
    assert found.keys() == {"kind", "wet"}
    assert found["kind"] in ("moat", "wall")
    assert isinstance(found["wet"], bool)


def test_json_mode_allows_any_object(writer: ChatKVRag):
    model = writer.with_structured_output({"title": "anything"}, method="json_mode", include_raw=True)
    answer = model.invoke(QUESTION, max_tokens=20)
    assert answer["raw"].text.startswith("{")
    with pytest.raises(SettingsError, match="found 'xml'"):
        writer.with_structured_output(Place, method="xml")


def test_an_answer_that_is_cut_off_does_not_parse(writer: ChatKVRag):
    with pytest.raises(OutputParserException):
        writer.with_structured_output(Place, max_tokens=5).invoke(QUESTION)
    answer = writer.with_structured_output(Place, include_raw=True, max_tokens=5).invoke(QUESTION)
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)


def test_nested_schemas_with_references(writer: ChatKVRag):
    class Region(BaseModel):
        """A region."""

        capital: Place
        others: list[Place] = Field(min_length=1, max_length=2)

    found = writer.with_structured_output(Region).invoke(QUESTION, max_tokens=300)
    assert found.capital == found.others[0] == Place(name=WORD, size=3)


def test_what_cannot_be_a_schema_is_refused_by_name(writer: ChatKVRag):
    with pytest.raises(SettingsError, match="strin"):
        writer.with_structured_output(
            {"title": "x", "type": "object", "properties": {"n": {"type": "strin"}}, "required": ["n"]}
        ).invoke(QUESTION)


def test_sampling_stays_inside_the_schema(chat: ChatKVRag):
    schema = {"title": "n", "type": "object", "properties": {"n": {"enum": [1, 22, 333]}}, "required": ["n"]}
    seen = {
        json.dumps(chat.with_structured_output(schema, temperature=2.0, seed=seed).invoke("Pick.")) for seed in range(6)
    }
    assert seen <= {'{"n": 1}', '{"n": 22}', '{"n": 333}'}
    assert len(seen) > 1
