"""Tiny models and tokenizers, made here: nothing is downloaded, and everything runs on two cores."""

import asyncio
import gc
import os
import threading

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and workers share the cores

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from kvrag.completion import Completion
from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore

torch.set_num_threads(1)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHUNKS = (
    "The lighthouse of Corran Head was lit in 1788 by a keeper who owned neither clock nor calendar.",
    "Ferry tokens are stamped from brass on Mondays,\nand from copper when the brass runs out in winter.",
    "Every archive box in the harbour office is tied with green string; the red string marks what must not be lent.",
    "Bread in the upper town is sold by the length of an arm, and the baker's own arm is the measure.",
    "Überfahrt: the night boat crosses in 41 minutes – fog permitting – and carries no more than twelve goats.",
    "The school bell was cast from two sunken anchors, which is why it rings a little flat before rain.",
)


@pytest.fixture(autouse=True)
def event_loop_of_the_thread() -> Iterator[None]:
    """A loop for what runs coroutines on the thread's own one, as LlamaIndex does: nobody else would close it.

    LlamaIndex's memory never closes its SQLite connection. When that is collected, its thread ends and tells the loop,
    which has to be there.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    before = set(_sqlite_threads())
    yield
    if left := [thread for thread in _sqlite_threads() if thread not in before]:
        asyncio.set_event_loop(loop)
        gc.collect()
        for thread in left:
            thread.join(10)
    loop.close()


def _sqlite_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


@pytest.fixture(scope="session")
def hf_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CHUNKS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


TINY = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # with the default 0.02 a model hardly uses attention and hides position errors
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def build_model(config, dtype: torch.dtype = torch.float32, seed: int = 0):
    """A random model of this configuration."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.fixture
def tiny(hf_tokenizer) -> LanguageModel:
    return LanguageModel(build_model(LlamaConfig(**TINY)), hf_tokenizer, name="tiny")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PacketStore]:
    with PacketStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def new_engine(hf_tokenizer, tmp_path: Path) -> Iterator[Callable[..., PacketEngine]]:
    """Make engines over one store; every model is random but the same, in float32 unless told otherwise."""
    engines: list[PacketEngine] = []
    stores: list[PacketStore] = []

    def make(
        *, config=None, dtype: torch.dtype = torch.float32, seed: int = 0, folder="store", disk_bytes=None, **options
    ):
        model = LanguageModel(build_model(config or LlamaConfig(**TINY), dtype, seed), hf_tokenizer, name="tiny")
        stores.append(PacketStore(tmp_path / folder, disk_bytes=disk_bytes))
        engines.append(
            PacketEngine(model, store=stores[-1], **{"adapter": "none", "strategy": "no-recompute"} | options)
        )
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    for opened in stores:
        opened.close()


@pytest.fixture
def engine(new_engine) -> PacketEngine:
    return new_engine()


@pytest.fixture
def tiny_demo(monkeypatch, hf_tokenizer, tmp_path) -> None:
    """The name "demo" opens a tiny random model, and relative paths lead into a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def open_tiny(source, device="auto"):
        assert source == "demo"
        config = LlamaConfig(**TINY | {"max_position_embeddings": 16384})
        return LanguageModel(build_model(config), hf_tokenizer, name="demo")

    monkeypatch.setattr("kvrag.engine.open_model", open_tiny)


@pytest.fixture
def completions(monkeypatch) -> list[Completion]:
    """Every answer that any engine gives, in order."""
    given: list[Completion] = []

    def record(*args, **fields) -> Completion:
        given.append(Completion(*args, **fields))
        return given[-1]

    monkeypatch.setattr("kvrag.request.Completion", record)
    return given
