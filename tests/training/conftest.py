from collections.abc import Callable

import pytest
from transformers import LlamaConfig

from kvrag.model import LanguageModel
from tests.conftest import TINY, build_model


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """Drawing takes longer than training; the command's test looks at a picture."""
    monkeypatch.setattr("kvrag.training.run.plot_log", lambda *_: None)


@pytest.fixture
def new_model(hf_tokenizer) -> Callable[..., LanguageModel]:
    """Make tiny models, random but the same for the same seed and configuration."""

    def make(seed: int = 0, **changes: object) -> LanguageModel:
        return LanguageModel(build_model(LlamaConfig(**TINY | changes), seed=seed), hf_tokenizer, name="tiny")

    return make
