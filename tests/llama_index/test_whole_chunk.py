"""Packing chunks into a window that is too small for all of them."""

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore
from llama_index_kvrag import KVRagLLM, WholeChunkPromptHelper

from tests.conftest import CHUNKS
from tests.llama_index.conftest import QUESTION, chunk_nodes, packet_tokens

TEMPLATE = PromptTemplate("{context_str}\n\n{query_str}")


@pytest.fixture
def counts(engine) -> list[int]:
    return [engine.count_tokens(chunk) + 2 for chunk in CHUNKS]


def window(llm, engine, room: int, padding: int = 5) -> int:
    """The context window that leaves so many tokens for chunks in TEMPLATE."""
    return engine.count_tokens(TEMPLATE.format(context_str="", query_str="")) + llm.max_tokens + padding + room


@pytest.fixture
def tight(llm, engine, counts) -> KVRagLLM:
    """Room for the first two chunks and half of the third."""
    llm.context_window = window(llm, engine, counts[0] + counts[1] + counts[2] // 2)
    return llm


def test_the_next_prompt_begins_with_the_chunk_that_does_not_fit(tight):
    packed = WholeChunkPromptHelper.from_llm(tight).repack(TEMPLATE, [f" {chunk}\n" for chunk in CHUNKS] + ["  "])
    assert packed[0] == f"{CHUNKS[0]}\n\n{CHUNKS[1]}"
    assert packed[1].startswith(CHUNKS[2])
    assert "\n\n".join(packed) == "\n\n".join(CHUNKS)


def test_the_stock_helper_cuts_the_chunk_there(tight, engine):
    stock = PromptHelper.from_llm_metadata(tight.metadata, tokenizer=engine.model.tokenizer.encode)
    packed = stock.repack(TEMPLATE, CHUNKS)
    assert not any(CHUNKS[2] in text for text in packed)


def test_a_chunk_that_needs_the_padding_stays_whole_and_a_larger_one_is_cut(llm, engine, counts):
    largest = max(range(len(CHUNKS)), key=counts.__getitem__)
    llm.context_window = window(llm, engine, counts[largest])
    made = WholeChunkPromptHelper.from_llm(llm)
    assert made.repack(TEMPLATE, CHUNKS[largest : largest + 1], padding=25) == [CHUNKS[largest]]
    llm.context_window -= 8
    cut = WholeChunkPromptHelper.from_llm(llm).repack(TEMPLATE, [*CHUNKS[largest : largest + 1], "The end."])
    assert len(cut) > 2
    assert cut[-1] == "The end."
    assert CHUNKS[largest] not in cut


def test_a_prompt_that_fills_the_window_is_an_error(llm, engine):
    llm.context_window = window(llm, engine, 0)
    with pytest.raises(ValueError, match="not positive"):
        WholeChunkPromptHelper.from_llm(llm).repack(TEMPLATE, CHUNKS)


def test_messages_are_counted_behind_the_models_chat_template(llm, engine):
    counter = WholeChunkPromptHelper.from_llm(llm)._token_counter
    message = ChatMessage(content="Good evening.")
    assert counter.estimate_tokens_in_messages([message]) == engine.count_tokens(llm.render([message]))


def test_soft_tokens_take_room_too(llm, engine, monkeypatch):
    scope = engine.scope()
    recipe = scope.recipe.model_copy(update={"soft_before": 8, "soft_after": 8})
    monkeypatch.setattr(engine, "scope", lambda strategy=None: type(scope)(scope.identity, recipe, scope.namespace))
    assert WholeChunkPromptHelper.from_llm(llm).chunk_overhead == 18


@pytest.mark.parametrize("mode", ["compact", "tree_summarize"])
def test_in_a_tight_window_it_attaches_every_chunk_and_the_stock_helper_does_not(mode, engine, recorder, monkeypatch):
    nodes = chunk_nodes()
    whole = packet_tokens(engine, nodes)
    rooms: list[int] = []
    available = PromptHelper._get_available_chunk_size

    def noted(self, *args, **kwargs):
        rooms.append(available(self, *args, **kwargs))
        return rooms[-1]

    monkeypatch.setattr(PromptHelper, "_get_available_chunk_size", noted)

    def cached(llm, helper) -> int:
        recorder.clear()
        synthesizer = get_response_synthesizer(llm=llm, prompt_helper=helper, response_mode=mode)
        synthesizer.synthesize(QUESTION, [NodeWithScore(node=node) for node in nodes])
        return recorder.cached_tokens

    roomy = KVRagLLM(engine, max_tokens=4)
    assert cached(roomy, WholeChunkPromptHelper.from_llm(roomy)) == whole
    assert len(recorder.starts) == 1
    tight = KVRagLLM(engine, max_tokens=4, context_window=roomy.context_window - rooms[0] + whole * 2 // 3)
    assert cached(tight, WholeChunkPromptHelper.from_llm(tight)) == whole
    assert len(recorder.starts) > 1
    stock = PromptHelper.from_llm_metadata(tight.metadata, tokenizer=engine.model.tokenizer.encode)
    stock._token_counter = WholeChunkPromptHelper.from_llm(tight)._token_counter
    assert cached(tight, stock) < whole


def test_settings_install_it_for_query_engines(llm, index, engine):
    Settings.llm = llm
    Settings.prompt_helper = made = WholeChunkPromptHelper.from_llm(llm)
    synthesizer = index.as_query_engine()._response_synthesizer
    assert synthesizer._prompt_helper is made
