"""A LlamaIndex chat engine over packets: every turn retrieves again, and no turn computes a chunk again."""

import sys
import tempfile

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index_kvrag import KVRagLLM, KVRagTransform

from kvrag import PacketEngine
from kvrag.demo.collection import load_sections


def main(model: str = "demo") -> None:
    documents = [Document(text=section.text) for section in load_sections()[:6]]
    with tempfile.TemporaryDirectory() as folder, PacketEngine.from_pretrained(model, store=folder) as engine:
        splitter = SentenceSplitter(chunk_size=400, chunk_overlap=0)
        nodes = IngestionPipeline(transformations=[splitter, KVRagTransform(engine)]).run(documents=documents)
        index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=8))  # use a real one in an application
        llm = KVRagLLM(engine, max_tokens=30)
        memory = ChatMemoryBuffer.from_defaults(token_limit=2000, tokenizer_fn=engine.token_ids)
        mode = "condense_plus_context"  # rewrites a question that follows another one before it retrieves
        chat = index.as_chat_engine(chat_mode=mode, llm=llm, memory=memory, similarity_top_k=3)
        for question in ("What is the Museum of Drift and Wreck?", "What does admission to it cost?"):
            print(f"> {question}")
            for piece in chat.stream_chat(question).response_gen:
                print(piece, end="", flush=True)
            print()


if __name__ == "__main__":
    main(*sys.argv[1:])
