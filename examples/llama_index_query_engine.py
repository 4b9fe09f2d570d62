"""A LlamaIndex query engine over packets: ingest with KVRagTransform, ask with KVRagLLM."""

import sys
import tempfile

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index_kvrag import KVRagLLM, KVRagTransform

from kvrag import PacketEngine
from kvrag.demo.collection import load_sections


def main(model: str = "demo") -> None:
    embedding = MockEmbedding(embed_dim=8)  # use a real embedding in an application
    documents = [Document(text=section.text, metadata={"source": section.name}) for section in load_sections()[:6]]
    with tempfile.TemporaryDirectory() as folder, PacketEngine.from_pretrained(model, store=folder) as engine:
        splitter = SentenceSplitter(chunk_size=400, chunk_overlap=0)
        nodes = IngestionPipeline(transformations=[splitter, KVRagTransform(engine)]).run(documents=documents)
        index = VectorStoreIndex(nodes, embed_model=embedding)
        llm = KVRagLLM(engine, max_tokens=30)
        print(index.as_query_engine(llm=llm, similarity_top_k=3).query("What is the Museum of Drift and Wreck?"))


if __name__ == "__main__":
    main(*sys.argv[1:])
