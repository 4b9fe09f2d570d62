"""An embedding without a model: texts that share words are near each other."""

import hashlib
import math
import re

from llama_index.core.base.embeddings.base import BaseEmbedding

CHANNELS = 256


class WordEmbedding(BaseEmbedding):
    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [1e-3] * CHANNELS
        for word in re.findall(r"\w{4,}", text.lower()):
            vector[int(hashlib.sha256(word.encode()).hexdigest(), 16) % CHANNELS] += 1
        norm = math.hypot(*vector)
        return [channel / norm for channel in vector]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
