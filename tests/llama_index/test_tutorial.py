"""LlamaIndex's starter application for local models, and the same one with the changes that the docs name."""

import difflib
import gc

import pytest
from llama_index.core import Settings
from transformers import LlamaConfig

from tests.conftest import CHUNKS, TINY, build_model
from tests.documented import changed_as_documented

BEFORE = """
from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.llms.huggingface import HuggingFaceLLM

Settings.embed_model = MockEmbedding(embed_dim=8)
Settings.llm = HuggingFaceLLM(model_name=MODEL, tokenizer_name=MODEL, max_new_tokens=8, is_chat_model=True)

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents)

query_engine = index.as_query_engine()
response = query_engine.query("When was the lighthouse lit?")

chat_engine = index.as_chat_engine()
turns = [str(chat_engine.chat(message)) for message in ("When was it lit?", "Who keeps it?")]
"""

AFTER = changed_as_documented(BEFORE, "llama-index.md")


@pytest.fixture
def folder(tmp_path, monkeypatch, hf_tokenizer):
    """A model on disk and a folder of documents, in the current directory."""
    monkeypatch.chdir(tmp_path)
    build_model(LlamaConfig(**TINY | {"max_position_embeddings": 16384})).save_pretrained("model")
    hf_tokenizer.save_pretrained("model")
    (tmp_path / "data").mkdir()
    for number, chunk in enumerate(CHUNKS):
        (tmp_path / "data" / f"{number}.txt").write_text(chunk, encoding="utf-8")
    return tmp_path


def test_only_the_lines_that_make_the_llm_differ():
    changes = [line for line in difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines()) if line[0] in "+-"]
    assert [line[0] for line in changes].count("-") == 2
    assert [line[0] for line in changes].count("+") == 6
    assert all("HuggingFaceLLM" in line for line in changes if line[0] == "-")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # LlamaIndex's default memory never closes its SQLite connection
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("application", [BEFORE, AFTER], ids=["before", "after"])
def test_the_tutorials_application_runs(application, folder, recorder, monkeypatch):
    monkeypatch.setattr(Settings, "_transformations", None)
    names = {"MODEL": str(folder / "model")}
    try:
        exec(compile(application, "tutorial", "exec"), names)
        assert names["response"].response
        assert len(names["turns"]) == 2
        assert len(names["response"].source_nodes) == 2
        if application is AFTER:
            used = [end.response.raw["usage"] for end in recorder.ends]
            cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in used]
            texts = [found.node.get_content("llm") for found in names["response"].source_nodes]
            with names["engine"].prefetch(texts) as hold:
                assert cached[0] == sum(packet.tokens for packet in hold.packets.values()) > 0
            assert cached[-1] > 0
    finally:
        if "engine" in names:
            names["engine"].close()
        names.clear()
        gc.collect()  # what is left open is named here, and not in the next test
