"""What a store holds, as passages to train on."""

import pytest

from kvrag.errors import DataError
from kvrag.training import stored_passages
from kvrag.training.stored import _TOGETHER
from tests.conftest import CHUNKS


def test_every_text_of_the_namespace_comes_back_once_in_the_order_of_building(new_engine):
    engine = new_engine()
    engine.build(CHUNKS, progress=False)
    other = new_engine(namespace="other")
    other.build(["A text of another tenant, which nobody else may learn anything from."], progress=False)
    again = new_engine(strategy="kv-packet", codec="int8")  # the same texts as other packets
    again.build(CHUNKS[:3], progress=False)
    found = stored_passages(engine.store, engine.model)
    assert sorted(text for topic in found.topics for text in topic.passages) == sorted(CHUNKS)
    assert len(found) == 0
    assert len(stored_passages(engine.store, engine.model, namespace="other").topics[0].passages) == 1


def test_topics_are_chunks_that_were_built_in_a_row(new_engine):
    engine = new_engine()
    texts = [f"Entry {number} of the harbour book, in which nothing else happened." for number in range(70)]
    for text in texts:
        engine.build([text], progress=False)
    found = stored_passages(engine.store, engine.model)
    assert [list(topic.passages) for topic in found.topics] == [texts[:32], texts[32:64], texts[64:]]
    drawn = stored_passages(engine.store, engine.model, most=_TOGETHER, seed=1)
    assert len(drawn.topics) == 1
    assert drawn.topics[0].passages in {topic.passages for topic in found.topics}
    assert drawn == stored_passages(engine.store, engine.model, most=_TOGETHER, seed=1)


def test_a_damaged_packet_is_quarantined_and_left_out(new_engine):
    engine = new_engine()
    engine.build(CHUNKS, progress=False)
    row = next(engine.store.ls())
    path = next(engine.store.root.glob(f"packets/*/*/{row.key}.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    found = stored_passages(engine.store, engine.model)
    assert sum(len(topic.passages) for topic in found.topics) == len(CHUNKS) - 1
    assert not path.exists()
    assert (engine.store.root / "quarantine").exists()


def test_packets_of_another_tokenizer_are_no_texts(new_engine, monkeypatch):
    engine = new_engine()
    engine.build(CHUNKS, progress=False)
    monkeypatch.setitem(vars(engine.model), "identity", engine.model.identity.model_copy(update={"tokenizer": "other"}))
    with pytest.raises(DataError, match=f"found {len(CHUNKS)} packets there and none of this model's tokenizer"):
        stored_passages(engine.store, engine.model)


def test_an_empty_namespace_is_named(engine):
    with pytest.raises(DataError, match="in namespace 'nobody' of .*, found 0 packets"):
        stored_passages(engine.store, engine.model, namespace="nobody")
