"""One RAG chain over langchain-huggingface and over kvrag, into benchmarks/results/frameworks-langchain.json.

Prompt, documents, weights and length of answers are the same; only the chat model differs. Chat models take turns, so
that a machine that slows down slows all of them: compare numbers of one file with each other. The timer of first_token
rows starts with the question and ends with the first text of the stream, so retrieval and templates count. `defects`
says what each chat model did when it was asked to stop, to report usage, to leave the event loop alone and to end.

Needs `pip install --no-deps langchain-huggingface`: it wants an older huggingface-hub than transformers does.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_kvrag import ChatKVRag
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from kvrag import PacketEngine
from kvrag.demo.collection import load_questions, load_sections
from kvrag.demo.weights import demo_folder

RESULT = Path(__file__).parent / "results" / "frameworks-langchain.json"
PROMPT = ChatPromptTemplate.from_messages(
    [("human", "Answer from these documents.\n\n{context}\n\nQuestion: {question}\nAnswer briefly.")]
)
STOP = " the"


def texts_of(question, sections, k):
    """The section that answers, among others."""
    others = [section for section in sections if section.name != question.source][: k - 1]
    return [section.text for section in [*others, *(s for s in sections if s.name == question.source)]]


def retriever_of(texts):
    vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    vectors.add_documents([Document(text) for text in texts])
    return vectors.as_retriever(search_kwargs={"k": len(texts)})


def chain_of(retriever, chat):
    def join(documents):
        return "\n\n".join(document.page_content for document in documents)

    return {"context": retriever | join, "question": RunnablePassthrough()} | PROMPT | chat


def timed(chain, question, tokenizer):
    begin = time.perf_counter()
    first, text = 0.0, ""
    for chunk in chain.stream(question):
        if chunk.text and not first:
            first = time.perf_counter()
        text += chunk.text
    end = time.perf_counter()
    tokens = len(tokenizer.encode(text, add_special_tokens=False))
    return {
        "first_token_ms": 1e3 * (first - begin),
        "per_token_ms": 1e3 * (end - first) / max(1, tokens - 1),
        "answer": text,
    }


def defects(chat):
    """What a chat model does beyond answering."""
    question = "Tell me everything that you know about the sea."
    stopped = chat.invoke(question, stop=[STOP])
    seen = {
        "stop_string": STOP,
        "answer_to_be_stopped": stopped.text,
        "usage_reported": stopped.usage_metadata is not None,
        "finish_reason": stopped.response_metadata.get("finish_reason"),
    }
    seen |= asyncio.run(loop_of(chat, question))
    before = set(threading.enumerate())
    stream = chat.stream(question)
    next(stream)
    stream.close()
    time.sleep(0.1)
    seen["threads_at_work_after_closing_a_stream"] = len(set(threading.enumerate()) - before)
    return seen


async def loop_of(chat, question):
    """How often the event loop came round while a chat model answered, or why it did not answer."""
    task, ticks = asyncio.create_task(chat.ainvoke(question)), 0
    while not task.done():
        await asyncio.sleep(0.005)
        ticks += 1
    error = task.exception()
    return {"ainvoke": type(error).__name__ if error else "answers", "event_loop_ticks_meanwhile": ticks}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=24)
    arguments = parser.parse_args()
    limit = arguments.max_tokens
    folder = demo_folder("demo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generate = pipeline(
        "text-generation", model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), tokenizer=tokenizer
    )
    options = {"max_new_tokens": limit, "do_sample": False, "return_full_text": False}
    huggingface = ChatHuggingFace(
        llm=HuggingFacePipeline(pipeline=generate, pipeline_kwargs=options), tokenizer=tokenizer, model_id=str(folder)
    )
    sections, questions = load_sections(), load_questions()[: arguments.questions]
    with tempfile.TemporaryDirectory() as store:
        engine = PacketEngine.from_pretrained("demo", store=store, computed_bytes=0)
        texts = {question: texts_of(question, sections, arguments.documents) for question in questions}
        engine.build(text for several in texts.values() for text in several)
        chats = {
            "langchain-huggingface": huggingface,
            "kvrag, full-recompute": ChatKVRag(engine=engine, max_tokens=limit, strategy="full-recompute"),
            "kvrag, packets": ChatKVRag(engine=engine, max_tokens=limit),
        }
        runs = {name: [] for name in chats}
        for number, question in enumerate([questions[0], *questions]):
            retriever = retriever_of(texts[question])
            for name in list(chats)[:: 1 if number % 2 else -1]:
                run = timed(chain_of(retriever, chats[name]), question.question, tokenizer)
                if number:  # the first question warms up
                    runs[name].append(run | {"question": question.question, "reference": question.reference})
        result = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "model": "demo",
            "dtype": "bfloat16",
            "documents": arguments.documents,
            "versions": {name: version(name) for name in ("langchain-core", "langchain-huggingface", "transformers")},
            "chat_models": {
                name: {
                    "first_token_ms": round(statistics.median(run["first_token_ms"] for run in rows), 1),
                    "per_token_ms": round(statistics.median(run["per_token_ms"] for run in rows), 1),
                    "answers_with_the_reference": sum(r["reference"].lower() in r["answer"].lower() for r in rows),
                    "runs": rows,
                }
                for name, rows in runs.items()
            },
            "defects": {name: defects(chat) for name, chat in chats.items() if name != "kvrag, full-recompute"},
        }
        engine.close()
    base = result["chat_models"]["langchain-huggingface"]
    for row in result["chat_models"].values():
        row["first_token_times_sooner"] = round(base["first_token_ms"] / row["first_token_ms"], 2)
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(
        json.dumps({k: {x: y for x, y in v.items() if x != "runs"} for k, v in result["chat_models"].items()}, indent=1)
    )
    print(json.dumps(result["defects"], indent=1))


if __name__ == "__main__":
    main()
