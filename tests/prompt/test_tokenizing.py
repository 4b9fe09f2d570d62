import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from kvrag.errors import ModelError
from kvrag.tokenizing import ChunkTokenizer

from .toy_tokenizers import (
    CORPUS,
    KINDS,
    SPECIAL,
    toy_backend,
    toy_tokenizer,
    with_greedy_tokens,
    wrapped,
)

TOKENIZERS = {(kind, bos): ChunkTokenizer(toy_tokenizer(kind, bos=bos)) for kind in KINDS for bos in (False, True)}
PIECES = [*"ab T.\n\t<|>", "  ", "\r\n", "é", "e\u0301", "🎉", "The moat", " wide", *SPECIAL]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=map(str, TOKENIZERS))
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_tokenizer
@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_parts_in_a_row_decode_to_the_text(tokenizer: ChunkTokenizer, parts: list[tuple[str, bool]]) -> None:
    parts = [(text, literal) for text, literal in parts if text]
    ids = [
        token
        for i, (text, literal) in enumerate(parts)
        for token in tokenizer.encode(text, literal=literal, at_start=i == 0)
    ]
    text = "".join(text for text, _ in parts)
    lone_bos = parts[:1] == [("<s>", False)] and tokenizer.bos_id is not None  # then the second part is at the start
    assert tokenizer.decode(ids) == text or lone_bos


@every_tokenizer
@given(TEXTS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_literal_text_has_no_special_tokens(tokenizer: ChunkTokenizer, text: str) -> None:
    special = {tokenizer._plain.token_to_id(token) for token in SPECIAL}
    assert not special & set(tokenizer.encode(text, literal=True))
    assert not special & set(tokenizer.encode(text, literal=True, at_start=True))


@every_kind
def test_plain_text_keeps_its_special_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind, False]
    ids = tokenizer.encode("<|im_start|>user\nThe moat<|im_end|>\n")
    assert ids[0] == SPECIAL.index("<|im_start|>")
    assert ids.count(SPECIAL.index("<|im_end|>")) == 1


@every_kind
def test_many_spelled_special_tokens(kind: str) -> None:
    text = "</s><s></s>" * 700 + "🎉" * 3000
    tokenizer = TOKENIZERS[kind, False]
    assert tokenizer.decode(tokenizer.encode(text, literal=True)) == text


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"unigram"}))
def test_literal_ids_are_those_of_split_special_tokens_where_these_suffice(kind: str) -> None:
    text = "user <|im_end|> and im_start"
    expected = toy_tokenizer(kind)(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZERS[kind, False].encode(text, literal=True, at_start=True) == expected


def test_unknown_characters_are_not_mistaken_for_spelled_tokens() -> None:
    rules = json.loads(toy_backend("bpe, metaspace").to_str())
    rules["model"]["byte_fallback"] = False
    tokenizer = ChunkTokenizer(wrapped(Tokenizer.from_str(json.dumps(rules))))
    assert tokenizer.encode("🎉" * 5000, literal=True) == [SPECIAL.index("<unk>")]
    assert SPECIAL.index("<unk>") not in tokenizer.encode("a <unk> b", literal=True)


def test_a_unigram_model_would_find_special_tokens_as_pieces() -> None:
    """Why two halves are encoded apart: the backend's own switch is not enough."""
    backend = toy_backend("unigram")
    backend.encode_special_tokens = True
    assert backend.token_to_id("</s>") in backend.encode("a</s>b", add_special_tokens=False).ids


@pytest.mark.parametrize(
    "kind", ["byte-level with prefix", "unigram", "bpe, metaspace", "bpe, prepend", "bpe, no dummy prefix"]
)
def test_the_start_is_tokenised_as_the_tokenizer_does(kind: str) -> None:
    natural = toy_tokenizer(kind)
    for text in ["The moat is", CORPUS[0], "Ünïcode", "🎉"]:
        expected = natural(text, add_special_tokens=False)["input_ids"]
        assert TOKENIZERS[kind, False].encode(text, at_start=True) == expected
        inside = TOKENIZERS[kind, False].encode(text)
        assert (inside == expected) == (kind == "bpe, no dummy prefix")


def test_the_dummy_prefix_stands_behind_a_spelled_bos() -> None:
    tokenizer = TOKENIZERS["bpe, prepend", True]
    natural = toy_tokenizer("bpe, prepend")("<s>The moat", add_special_tokens=False)["input_ids"]
    assert tokenizer.encode("<s>The moat", at_start=True) == natural
    assert tokenizer.decode(natural) == "<s>The moat"


def test_no_dummy_prefix_in_front_of_a_special_token() -> None:
    for tokenizer in TOKENIZERS.values():
        text = "<|im_start|>user"
        assert tokenizer.encode(text, at_start=True) == tokenizer.encode(text)


@every_kind
@pytest.mark.parametrize("eos", [False, True])
def test_the_bos_is_the_one_that_the_tokenizer_adds(kind: str, eos: bool) -> None:
    assert ChunkTokenizer(toy_tokenizer(kind, eos=eos)).bos_id is None
    assert ChunkTokenizer(toy_tokenizer(kind, bos=True, eos=eos)).bos_id == 1


@every_kind
def test_the_given_tokenizer_is_not_changed(kind: str) -> None:
    given = toy_tokenizer(kind, bos=True)
    given.backend_tokenizer.enable_truncation(4)
    given.backend_tokenizer.enable_padding(length=9)
    before, flag = given.backend_tokenizer.to_str(), given.backend_tokenizer.encode_special_tokens
    tokenizer = ChunkTokenizer(given)
    assert len(tokenizer.encode(CORPUS[0], literal=True)) > 9
    assert tokenizer.decode(tokenizer.encode("a", at_start=True)) == "a"
    assert given.backend_tokenizer.to_str() == before
    assert given.backend_tokenizer.encode_special_tokens is flag


def test_tokens_that_swallow_spaces_leave_documents_alone() -> None:
    for kind in KINDS:
        tokenizer = ChunkTokenizer(with_greedy_tokens(kind))
        text = "a  <mask>  b <|user|>\n c"
        assert tokenizer.decode(tokenizer.encode(text, literal=True)) == text
        ids = tokenizer.encode("<|user|>\n The moat <mask> is")
        assert len(set(ids) & {tokenizer._plain.token_to_id(token) for token in ("<|user|>", "<mask>")}) == 2


def test_lossy_tokenizers_give_the_changed_text_back() -> None:
    backend = toy_backend("bpe, prepend")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), backend.normalizer])
    tokenizer = ChunkTokenizer(wrapped(backend))
    assert tokenizer.decode(tokenizer.encode("The ﬁne Moat", at_start=True)) == "the fine moat"


def test_a_special_token_that_appears_by_normalising_is_none_either() -> None:
    backend = toy_backend("byte-level")
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<end>", normalized=True)])
    tokenizer = ChunkTokenizer(wrapped(backend))
    end = backend.token_to_id("<end>")
    for text in ("a <end> b", "a ＜end＞ b"):
        assert end in tokenizer.encode(text)
        assert end not in tokenizer.encode(text, literal=True)


def test_the_digest_is_that_of_the_rules() -> None:
    given = toy_tokenizer("byte-level")
    given.chat_template = "{{ messages }}"
    given.backend_tokenizer.enable_truncation(4)
    assert ChunkTokenizer(given).digest == TOKENIZERS["byte-level", False].digest
    assert len({tokenizer.digest for tokenizer in TOKENIZERS.values()}) == len(TOKENIZERS)
    given.add_tokens(["<tool>"])
    assert ChunkTokenizer(given).digest != TOKENIZERS["byte-level", False].digest


@every_tokenizer
def test_an_answer_is_decoded_token_by_token(tokenizer: ChunkTokenizer) -> None:
    step = tokenizer.decode_stream(tokenizer.encode("The moat", at_start=True))
    pieces = [step(token) for token in tokenizer.encode(" is é🎉 wide</s>")]
    assert "".join(piece or "" for piece in pieces) == " is é🎉 wide"
    assert all("\ufffd" not in (piece or "") for piece in pieces)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"expected a fast tokenizer, found SimpleNamespace.*tokenizer\.json"):
        ChunkTokenizer(SimpleNamespace(backend_tokenizer=None))
