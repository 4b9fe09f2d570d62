"""The same packets whichever way they came."""

import threading
import time

import pytest
import torch
from transformers import LlamaConfig

from kvrag.builder import Chunk, Encoding, encode_batch
from kvrag.errors import SettingsError
from kvrag.loading import Loading, Rates
from kvrag.loading.loader import PacketLoader
from kvrag.loading.settings import loading_from
from kvrag.packet import Recipe, Scope
from kvrag.store import PacketStore
from kvrag.store.segments import PacketFile

from ..conftest import CHUNKS, TINY
from ..engine.test_writer import adapter_of, random_pairs

LONG = tuple(" ".join([f"Entry {n}.", *CHUNKS, *CHUNKS[:2]]) for n in range(3))
PROMPT = "Documents:\n" + "\n\n".join(LONG) + "\nQuestion: how many goats? Answer:"
WAYS = [
    "auto",
    "load",
    "compute",
    "both",
    Loading(mode="both", rates=Rates(bandwidth=5e6, latency=0, token_seconds=1e-4), deterministic=True),
]


def files(engine):
    return sorted((engine.store.root / "packets").rglob("*.safetensors"))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way if isinstance(way, str) else "deterministic")
def test_answers_are_the_same_in_every_mode(new_engine, way):
    builder = new_engine()
    builder.build(LONG)
    expected = builder.generate(PROMPT, max_new_tokens=6)
    answer = new_engine(loading=way).generate(PROMPT, max_new_tokens=6)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage
    report = answer.loading
    assert report.loaded_tokens + report.computed_tokens == answer.usage.cached_tokens
    if way in ("load", "compute"):
        assert report.mode == way
    assert report.ms == answer.timings.load_ms > 0


def test_a_fixed_division_is_the_same_every_time_and_uses_both_ends(new_engine):
    new_engine().build(LONG)
    reports = [new_engine(loading=WAYS[-1]).generate(PROMPT, max_new_tokens=1).loading for _ in range(2)]
    assert reports[0].mode == "both"
    assert reports[0].loaded_tokens == reports[1].loaded_tokens
    assert reports[0].loaded_packets + reports[0].computed_packets == len(LONG) - 1  # one was shared


def test_packets_that_are_gone_are_computed_and_written_back(new_engine):
    builder = new_engine()
    builder.build(LONG)
    expected = builder.generate(PROMPT, max_new_tokens=6).token_ids
    for path in files(builder):
        path.unlink()
    engine = new_engine()
    answer = engine.generate(PROMPT, max_new_tokens=6)
    assert answer.token_ids == expected
    assert answer.loading.computed_packets == len(LONG)
    engine.close()
    assert len(files(engine)) == len(LONG)
    assert new_engine(loading="load").generate(PROMPT, max_new_tokens=6).loading.loaded_packets == len(LONG)


@pytest.mark.parametrize("way", ["auto", "both", WAYS[-1]], ids=["auto", "both", "deterministic"])
def test_what_fails_its_checksum_is_computed_and_put_into_quarantine(new_engine, way):
    builder = new_engine()
    builder.build(LONG)
    expected = builder.generate(PROMPT, max_new_tokens=6).token_ids
    for path in files(builder):
        data = bytearray(path.read_bytes())
        data[-len(data) // 8] ^= 1
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    engine = new_engine(loading=way)
    assert engine.generate(PROMPT, max_new_tokens=6).token_ids == expected
    if isinstance(way, Loading):  # the others may have computed everything before anything was loaded
        assert engine.store.stat().corrupt >= 1


def test_several_callers_bring_a_packet_once(new_engine, monkeypatch):
    new_engine().build(LONG)
    engine = new_engine(loading="load")
    calls = []

    def slow(name):
        original = getattr(engine.store, name)

        def slowly(key, **options):
            calls.append(key)
            time.sleep(0.05)
            return original(key, **options)

        return slowly

    for name in ("read", "open"):
        monkeypatch.setattr(engine.store, name, slow(name))
    threads = [threading.Thread(target=engine.prepare, args=(PROMPT,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(set(calls)) == len(LONG)


def test_wrong_settings_say_so():
    from kvrag.loading import loading_from

    with pytest.raises(SettingsError, match="auto, load, compute, both, found 'fast'"):
        loading_from("fast")
    with pytest.raises(SettingsError, match="expected rates"):
        loading_from(Loading(deterministic=True))


def test_a_packet_encoded_in_pieces_is_the_packet(new_engine):
    engine = new_engine()
    embeddings = {"header": torch.randn(4, 64), "trailer": torch.randn(9, 64)}
    adapter = adapter_of(engine.model, random_pairs(engine.model), **embeddings)
    recipe = Recipe(ids_before=(1, 2), soft_before=4, soft_after=9, writer=True, dropped=1)
    scope = Scope(engine.scope().identity, recipe)
    chunk = Chunk("", engine.model.tokenizer.encode(LONG[0], literal=True))
    (packet,) = engine.run(encode_batch, engine.model, adapter, scope, [chunk])
    encoding = Encoding(engine.model, adapter, scope, chunk)
    for end in (2, 128, packet.tokens - 5, packet.tokens):  # in the middle of both kinds of soft tokens
        engine.run(encoding.extend, end)
    torch.testing.assert_close(encoding.kv(0, packet.tokens), packet.kv, atol=1e-5, rtol=1e-5)


def test_tokens_loaded_alone_are_the_stored_ones(new_engine):
    engine = new_engine(config=LlamaConfig(**TINY))
    engine.build(LONG[:1])
    (row,) = engine.store.ls()
    packet = engine.store.read(row.key)
    with engine.store.open(row.key) as file:
        assert isinstance(file, PacketFile)
        block = file.new_packet().data.fill_(7)
        file.read_tokens(128, packet.tokens, block)
        assert torch.equal(block[:, :, :, 128:], packet.kv[:, :, :, 128:])
        assert (block[:, :, :, :128] == 7).all()
        with pytest.raises(ValueError, match="multiples of 128"):
            file.read_tokens(5, 128, block)


@pytest.mark.parametrize("way", ["load", "compute"])
def test_who_wants_to_know_hears_of_packets_one_after_another(new_engine, way):
    engine = new_engine()
    engine.build(LONG)
    keys = [row.key for row in engine.store.ls()]
    chunks = {key: Chunk("", engine.store.read(key).token_ids.tolist()) for key in keys}
    told, jobs = [], []

    def run(job, *args):
        jobs.append(job)
        return engine._worker.run(job, *args)

    def arrived(packets):
        told.extend((packet.key, packet.kv.clone()) for packet in packets)

    with PacketStore(engine.store.root, memory_bytes=0) as store:
        loader = PacketLoader(engine.model, None, store, run, loading_from(way), arrived=arrived)
        fetched = loader.fetch(chunks, engine.scope())
        engine.run(lambda: None)  # everything announced is done
    assert sorted(key for key, _ in told) == sorted(keys) == sorted(fetched.packets)
    assert all(torch.equal(kv, fetched.packets[key].kv) for key, kv in told)
    assert jobs.count(arrived) > 1


def test_warming_up_measures_what_passes_take(tiny, tmp_path):
    with PacketStore(tmp_path) as store:
        loader = PacketLoader(tiny, None, store, lambda job, *args: None, Loading())
        guessed = loader.live.now()
        loader.warm_up(Scope(tiny.identity, Recipe(), ""))
        measured = loader.live.now()
    assert measured.token_seconds != guessed.token_seconds
    assert 0 < measured.compute_s(0, 256) < 60
