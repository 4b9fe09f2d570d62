"""kvrag for LlamaIndex: a local language model that attaches the packets of retrieved nodes instead of reading them.

    engine = PacketEngine.from_pretrained("demo", store="packets")
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), KVRagTransform(engine), embed_model])
    query_engine = index.as_query_engine(llm=KVRagLLM(engine))

Nothing else changes: prompts, retrievers and vector stores stay as they are, and packets are found by the text they
hold, in whatever prompt LlamaIndex renders.
"""

from llama_index_kvrag.llm import KVRagLLM
from llama_index_kvrag.postprocessor import KVRagPostprocessor
from llama_index_kvrag.transform import KVRagTransform
from llama_index_kvrag.whole_chunk import WholeChunkPromptHelper

__all__ = ["KVRagLLM", "KVRagPostprocessor", "KVRagTransform", "WholeChunkPromptHelper"]
