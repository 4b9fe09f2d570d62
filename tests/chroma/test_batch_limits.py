"""Collections of more entries than Chroma takes at once."""

import pytest
from chromadb.errors import InternalError

from tests.chroma.application import entry
from tests.chroma.conftest import cached, documents, tokens

COUNT = 6000
WITH_PACKETS = [*range(0, COUNT, 40), *range(5440, 5480), *range(COUNT - 20, COUNT)]
GONE = range(COUNT, COUNT + 20)


@pytest.mark.slow
def test_entries_beyond_chromas_batch_limit_keep_their_packets(place, collection, packets, gc):
    limit = place.client.get_max_batch_size()
    assert limit < COUNT
    with pytest.raises((ValueError, InternalError), match=r"[Bb]atch size"):
        collection.add(ids=[str(n) for n in range(COUNT)], embeddings=[[0.0, 1.0]] * COUNT)
    for first in range(0, COUNT, limit):
        some = range(first, min(first + limit, COUNT))
        ids, texts = [str(n) for n in some], [entry(n) for n in some]
        collection.add(ids=ids, documents=texts, embeddings=[[0.0, 1.0]] * len(ids))
    packets.build([entry(n) for n in [*WITH_PACKETS, *GONE]], progress=False)
    assert collection.count() == len(set(documents(collection))) == COUNT
    told = gc()
    assert told["marked"] == COUNT
    assert len(told["removed"]) == len(GONE)
    for number in WITH_PACKETS[::20] + WITH_PACKETS[-1:]:
        assert cached(packets, entry(number)) == tokens(packets, entry(number))
