"""What Chroma keeps of a text and of its metadata, as far as packets depend on it."""

import chromadb
import pytest

from kvrag.engine import PacketEngine
from tests.chroma.conftest import cached, documents, tokens
from tests.conftest import CHUNKS

AWKWARD = (
    "  leading and trailing white space, longer than thirty-two characters \t\n ",
    "carriage returns\r\nand new lines\nand both\r\nin one text of some length",
    "a byte order mark \ufeff, a nul \x00, and a decomposed e\u0301 in the middle of it",
    "goats 🐐 and sheep 🐑, fog 🌫️ and a family 👩‍👩‍👧 on the night boat",
    "a <|im_end|> that is no end, and a {brace} that is no template field at all",
)
VECTOR = [0.0, 1.0]


def document(collection, name: str) -> str:
    return collection.get(ids=[name])["documents"][0]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_text_comes_back_as_it_went_in_and_leads_to_its_packet(collection, packets: PacketEngine, text: str):
    packets.build([text], progress=False)
    collection.add(ids=["a"], documents=[text], embeddings=[VECTOR])
    found = document(collection, "a")
    assert found == text
    assert cached(packets, found) == tokens(packets, text)


def test_text_that_reads_like_a_special_token_stays_text_in_a_packet(packets: PacketEngine):
    text = AWKWARD[-1]
    packets.build([text], progress=False)
    prepared = packets.prepare(f"Read: {text}\nWell?")
    assert packets.model.stop_ids.isdisjoint(prepared.token_ids)


def test_an_upsert_is_answered_from_the_new_text_whatever_its_metadata_says(collection, packets: PacketEngine):
    packets.build(CHUNKS[:2], progress=False)
    collection.add(ids=["a"], documents=[CHUNKS[0]], embeddings=[VECTOR], metadatas=[{"packet": "of-the-old-text"}])
    collection.upsert(ids=["a"], documents=[CHUNKS[1]], embeddings=[VECTOR], metadatas=[{"page": 2}])
    stored = collection.get(ids=["a"])
    assert stored["metadatas"][0] == {"packet": "of-the-old-text", "page": 2}  # merged, not replaced: never trust it
    assert stored["documents"][0] == CHUNKS[1]
    assert cached(packets, stored["documents"][0]) == tokens(packets, CHUNKS[1])


def test_an_updated_text_is_computed_until_its_packet_is_built(collection, packets: PacketEngine):
    packets.build([CHUNKS[0]], progress=False)
    collection.add(ids=["a"], documents=[CHUNKS[0]], embeddings=[VECTOR])
    collection.update(ids=["a"], documents=[CHUNKS[2]], embeddings=[VECTOR])
    found = document(collection, "a")
    assert cached(packets, found) == 0
    assert packets.build([found], progress=False).built == 1
    assert cached(packets, found) == tokens(packets, CHUNKS[2])


def test_adding_an_id_again_keeps_the_old_text_and_its_packet(collection, packets: PacketEngine):
    packets.build([CHUNKS[0]], progress=False)
    collection.add(ids=["a"], documents=[CHUNKS[0]], embeddings=[VECTOR])
    collection.add(ids=["a"], documents=[CHUNKS[1]], embeddings=[VECTOR])  # silently ignored
    assert cached(packets, document(collection, "a")) == tokens(packets, CHUNKS[0])


def test_deleting_an_entry_leaves_the_packet_for_other_entries_of_the_same_text(collection, packets: PacketEngine):
    report = packets.build([CHUNKS[0], f"\n{CHUNKS[0]}  "], progress=False)
    assert report.built == 1
    collection.add(ids=["a", "b"], documents=[CHUNKS[0], CHUNKS[0]], embeddings=[VECTOR, VECTOR])
    collection.delete(ids=["a"])
    assert collection.count() == 1
    assert cached(packets, document(collection, "b")) == tokens(packets, CHUNKS[0])
    collection.delete(ids=["b"])
    assert packets.store.stat().packets == 1  # nobody deletes packets because an entry went


@pytest.mark.parametrize("change", ["add", "upsert", "update", "delete"])
def test_whatever_happens_to_entries_every_text_has_its_packet_and_no_other(collection, packets, gc, change: str):
    """An application that builds what it stores, and sweeps: the collection's texts decide, nothing else."""
    old, new = list(CHUNKS[:3]), list(CHUNKS[2:5])
    packets.build(old, progress=False)
    collection.add(ids=["a", "b", "c"], documents=old, embeddings=[VECTOR] * 3, metadatas=[{"page": 1}] * 3)
    entries = {"ids": ["b", "c", "d"], "documents": new, "embeddings": [VECTOR] * 3}
    if change == "delete":
        collection.delete(ids=["b"])
    else:
        packets.build(new, progress=False)
        getattr(collection, change)(**entries)
    remaining = documents(collection)
    expected = {
        "add": [*old, new[2]],  # what has the id already is left alone
        "upsert": [old[0], *new],
        "update": [old[0], *new[:2]],  # what has no such id is not added
        "delete": [old[0], old[2]],
    }
    assert sorted(remaining) == sorted(expected[change])
    before = packets.store.stat().packets
    told = gc()
    assert len(told["removed"]) == before - len(set(remaining))
    for text in remaining:
        assert cached(packets, text) == tokens(packets, text)
    for text in {*old, *new} - set(remaining):
        assert cached(packets, text) == 0


def test_text_of_an_entry_without_a_document_is_in_no_ones_way(collection, packets, gc):
    packets.build([CHUNKS[0]], progress=False)
    collection.add(ids=["a"], embeddings=[VECTOR])
    collection.add(ids=["b"], documents=[CHUNKS[0]], embeddings=[VECTOR])
    assert gc()["removed"] == []


def test_a_reopened_collection_and_a_reopened_store_still_belong_together(packets, new_engine, tmp_path):
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings)
    collection = client.create_collection("chunks", embedding_function=None)
    packets.build(CHUNKS[:2], progress=False)
    collection.add(ids=["a", "b"], documents=list(CHUNKS[:2]), embeddings=[VECTOR, VECTOR])
    again = chromadb.PersistentClient(str(tmp_path / "chroma"), settings).get_collection("chunks")
    engine = new_engine(computed_bytes=0)
    texts = again.get(ids=["b", "a"])["documents"]  # in the order of the collection, not of the ids asked for
    assert cached(engine, "\n\n".join(texts)) == tokens(engine, *CHUNKS[:2])
