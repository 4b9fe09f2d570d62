"""What may be set, where, and what a trace or a cache sees of it."""

import json
from collections.abc import Callable

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.runnables import ConfigurableField
from langchain_kvrag import ChatKVRag
from pydantic import ValidationError

from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from kvrag.strategies import FullRecompute
from tests.conftest import CHUNKS

QUESTION = f"Read this.\n\n{CHUNKS[0]}\n\nWhen was it lit?"


def test_a_call_wins_over_the_fields(engine: PacketEngine):
    chat = ChatKVRag(engine=engine, max_tokens=3, temperature=0.0)
    assert chat.invoke(QUESTION).usage_metadata["output_tokens"] == 3
    assert chat.invoke(QUESTION, max_tokens=5).usage_metadata["output_tokens"] == 5
    assert chat.bind(max_tokens=6).invoke(QUESTION).usage_metadata["output_tokens"] == 6
    assert chat.invoke(QUESTION, max_new_tokens=7).usage_metadata["output_tokens"] == 7


def test_a_seed_repeats_an_answer_and_another_one_does_not(engine: PacketEngine):
    chat = ChatKVRag(engine=engine, max_tokens=16, temperature=5.0, seed=1)
    first = chat.invoke(QUESTION).text
    assert chat.invoke(QUESTION).text == first
    assert chat.invoke(QUESTION, seed=2).text != first
    assert chat.invoke(QUESTION, top_k=1).text == chat.invoke(QUESTION, temperature=0.0).text


def test_unknown_and_impossible_settings_are_refused_by_name(engine: PacketEngine):
    chat = ChatKVRag(engine=engine)
    with pytest.raises(SettingsError, match="tempreature"):
        chat.invoke(QUESTION, tempreature=0.5)
    with pytest.raises(SettingsError, match="tool_choice.*'no-such'"):
        chat.bind_tools([], tool_choice="no-such")
    with pytest.raises(SettingsError, match="response_format.*'xml'"):
        chat.invoke(QUESTION, response_format={"type": "xml"})
    with pytest.raises(SettingsError, match="temperature.*-1"):
        ChatKVRag(engine=engine, temperature=-1)
    with pytest.raises(SettingsError, match="no-such"):
        ChatKVRag(engine=engine, strategy="no-such")
    with pytest.raises(SettingsError, match="no-such"):
        chat.invoke(QUESTION, strategy="no-such")
    with pytest.raises(ValidationError, match="tempreature"):
        ChatKVRag(engine=engine, tempreature=0.5)
    with pytest.raises(ValidationError, match="engine"):
        ChatKVRag(temperature=0.5)


def test_the_length_of_answers_has_transformers_name_too(engine: PacketEngine):
    assert ChatKVRag(engine=engine, max_new_tokens=3).max_tokens == 3
    assert ChatKVRag(engine=engine, max_new_tokens=3).invoke(QUESTION).usage_metadata["output_tokens"] <= 3


async def test_async_calls_refuse_unknown_settings_too(engine: PacketEngine):
    chat = ChatKVRag(engine=engine)
    with pytest.raises(SettingsError, match="tempreature"):
        await chat.ainvoke(QUESTION, tempreature=0.5)
    with pytest.raises(SettingsError, match="tempreature"):
        async for _ in chat.astream(QUESTION, tempreature=0.5):
            pass


def test_another_model_cannot_be_asked_for_by_name(engine: PacketEngine):
    chat = ChatKVRag(engine=engine, model_name="my-reader", max_tokens=2)
    assert chat.model == "my-reader"
    assert chat.invoke(QUESTION, model="my-reader").response_metadata["model_name"] == "my-reader"
    with pytest.raises(SettingsError, match="my-reader.*other"):
        chat.invoke(QUESTION, model="other")


def test_what_remote_models_need_is_accepted_and_kept_out_of_sight(engine: PacketEngine):
    chat = ChatKVRag(engine=engine, timeout=60, max_retries=2, api_key="secret-key", max_tokens=2)
    assert chat.invoke(QUESTION).text
    assert "secret-key" not in repr(chat) + str(chat._identifying_params)


def test_traces_name_provider_model_and_settings(engine: PacketEngine):
    chat = ChatKVRag(engine=engine, temperature=0.5, max_tokens=7, stop=["\n"])
    assert chat._get_ls_params() == {
        "ls_provider": "kvrag",
        "ls_model_name": "tiny",
        "ls_model_type": "chat",
        "ls_temperature": 0.5,
        "ls_max_tokens": 7,
        "ls_stop": ["\n"],
    }
    assert chat._get_ls_params(stop=["x"], model="other")["ls_stop"] == ["x"]
    assert "engine" not in repr(chat)
    json.dumps(chat._identifying_params)


def test_the_profile_tells_the_context_window(engine: PacketEngine):
    profile = ChatKVRag(engine=engine).profile
    assert profile is not None
    assert profile["max_input_tokens"] == engine.model.max_positions
    assert profile["tool_calling"] is profile["structured_output"] is True


def test_tokens_are_counted_by_the_models_tokenizer(chat: ChatKVRag, engine: PacketEngine):
    assert chat.get_token_ids(CHUNKS[4]) == list(engine.model.tokenizer.encode(CHUNKS[4]))
    assert chat.get_num_tokens(CHUNKS[4]) == engine.count_tokens(CHUNKS[4])
    assert ChatKVRag(engine=engine, custom_get_token_ids=lambda _: [7]).get_token_ids("text") == [7]


def test_a_configurable_field_keeps_the_engine_and_streams(chat: ChatKVRag, packet_tokens):
    cached = packet_tokens(CHUNKS[0])
    model = chat.configurable_fields(strategy=ConfigurableField(id="strategy"))
    assert model.invoke(QUESTION).usage_metadata["input_token_details"] == {"cache_read": cached}
    full = model.with_config(configurable={"strategy": "full-recompute"})
    assert full.invoke(QUESTION).usage_metadata["input_token_details"] == {"cache_read": 0}
    assert len(list(full.stream(QUESTION))) > 2


def test_a_cached_answer_is_never_shared_between_models_strategies_or_settings(new_engine: Callable[..., PacketEngine]):
    cache = InMemoryCache()
    engines = [new_engine(), new_engine(seed=1, folder="other"), new_engine(namespace="tenant", folder="third")]
    models = [ChatKVRag(engine=engine, cache=cache, max_tokens=4) for engine in engines]
    models += [
        ChatKVRag(engine=engines[0], cache=cache, max_tokens=4, strategy="full-recompute"),
        ChatKVRag(engine=engines[0], cache=cache, max_tokens=4, strategy=FullRecompute(segmented=True)),
        ChatKVRag(engine=engines[0], cache=cache, max_tokens=4, seed=3),
    ]
    for model in models:
        model.invoke(QUESTION)
    models[0].invoke(QUESTION, top_k=3)
    assert len(cache._cache) == len(models) + 1


def test_a_cached_answer_is_given_without_asking_the_engine(engine: PacketEngine, monkeypatch):
    answers = [ChatKVRag(engine=engine, cache=cache, max_tokens=4) for cache in [InMemoryCache()] for _ in range(2)]
    first = answers[0].invoke(QUESTION).text
    monkeypatch.setattr(PacketEngine, "stream", None)
    assert answers[1].invoke(QUESTION).text == first
