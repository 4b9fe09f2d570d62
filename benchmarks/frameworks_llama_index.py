"""The same RAG application with llama-index-llms-huggingface and with KVRagLLM, over the same weights.

    python benchmarks/frameworks_llama_index.py --questions 6

Both get the messages that LlamaIndex's compact mode makes of the same retrieved chunks, and stream greedy answers; they
take turns in going first. Times are those a reader of the stream sees. `full-recompute` is KVRagLLM without packets.
Compare the ratios within a run, not the times: what each does with stop strings, usage, the event loop and a reader who
leaves is observed, not timed.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT
from llama_index.llms.huggingface import HuggingFaceLLM
from llama_index_kvrag import KVRagLLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvrag.demo.collection import load_questions
from kvrag.demo.run import open_demo
from kvrag.demo.weights import demo_folder
from kvrag.evaluation.metrics import contains_answer

SHORT = [ChatMessage(content="Count from one to twenty, with commas.", role="user")]
STOP = ","


def huggingface(max_new_tokens: int) -> HuggingFaceLLM:
    folder = demo_folder("demo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return HuggingFaceLLM(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        tokenizer=tokenizer,
        context_window=8192,
        max_new_tokens=max_new_tokens,
        is_chat_model=True,
        generate_kwargs={"do_sample": False, "pad_token_id": tokenizer.eos_token_id},
    )


def ask(llm: LLM, messages: Sequence[ChatMessage], count: Callable[[str], int]) -> dict[str, Any]:
    """One streamed answer; times in ms, the first token's and the mean of the others."""
    began = time.perf_counter()
    first, answer = 0.0, ""
    for response in llm.stream_chat(messages):
        if response.delta and not first:
            first = time.perf_counter()
        answer = response.message.content or ""
    ended = time.perf_counter()
    tokens = max(count(answer) - 1, 1)
    return {
        "answer": answer,
        "first_token_ms": round(1000 * (first - began), 1),
        "per_token_ms": round(1000 * (ended - first) / tokens, 2),
    }


async def rounds_of_the_loop(llm: LLM) -> int:
    """How often the event loop came round while an answer was awaited."""
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0.001)
            rounds += 1

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    await llm.achat(SHORT)
    counting.cancel()
    return rounds


def passes_after_leaving(llm: LLM, module: torch.nn.Module) -> int:
    """Passes through the model in the second after a stream was closed behind its first piece."""
    passes = 0

    def counted(*_: Any) -> None:
        nonlocal passes
        passes += 1

    stream = llm.stream_chat(SHORT)
    next(stream)
    stream.close()
    time.sleep(0.2)  # the pass that was on its way
    hook = module.register_forward_hook(counted)
    time.sleep(1.0)
    hook.remove()
    time.sleep(3.0)  # whatever goes on shall not disturb what comes next
    return passes


def observe(llm: LLM, module: torch.nn.Module) -> dict[str, Any]:
    response = llm.chat(SHORT, stop=[STOP])
    raw = response.raw if isinstance(response.raw, dict) else {}
    return {
        "stop_string_ends_the_answer": STOP not in (response.message.content or ""),
        "reports_usage": "usage" in raw,
        "keeps_tensors_in_responses": any(isinstance(value, torch.Tensor) for value in raw.values()),
        "event_loop_rounds_during_an_answer": asyncio.run(rounds_of_the_loop(llm)),
        "passes_in_the_second_after_a_reader_left": passes_after_leaving(llm, module),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/frameworks-llama-index.json"))
    options = parser.parse_args()

    setup = open_demo()
    theirs = huggingface(options.max_new_tokens)
    llms: dict[str, LLM] = {
        "huggingface": theirs,
        "kvrag": KVRagLLM(setup.engine, max_tokens=options.max_new_tokens),
        "kvrag full-recompute": KVRagLLM(setup.engine, strategy="full-recompute", max_tokens=options.max_new_tokens),
    }
    tokenizer = theirs._tokenizer
    retriever = setup.index.as_retriever(similarity_top_k=options.top_k)
    for llm in llms.values():
        ask(llm, SHORT, lambda text: len(tokenizer.encode(text)))
    rows = []
    for number, question in enumerate(load_questions()[: options.questions]):
        chunks = "\n\n".join(found.node.get_content() for found in retriever.retrieve(question.question))
        messages = CHAT_TEXT_QA_PROMPT.format_messages(context_str=chunks, query_str=question.question)
        setup.engine.prefetch([found.node.get_content() for found in retriever.retrieve(question.question)]).release()
        row: dict[str, Any] = {"question": question.question, "reference": question.reference}
        for name in list(llms) if number % 2 == 0 else list(reversed(llms)):
            row[name] = ask(llms[name], messages, lambda text: len(tokenizer.encode(text)))
            row[name]["right"] = contains_answer(row[name]["answer"], [question.reference])
        rows.append(row)
        print(question.question, {name: row[name]["first_token_ms"] for name in llms}, flush=True)

    def median(name: str, what: str) -> float:
        return statistics.median(row[name][what] for row in rows)

    modules = {"huggingface": theirs._model, "kvrag": setup.engine.model._model}
    report = {
        "model": "demo",
        "dtype": str(theirs._model.dtype).removeprefix("torch."),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "top_k": options.top_k,
        "huggingface_over_kvrag": {
            what: round(median("huggingface", what) / median("kvrag", what), 2)
            for what in ("first_token_ms", "per_token_ms")
        },
        "right": {name: sum(row[name]["right"] for row in rows) for name in llms},
        "same_answer_as_huggingface": {
            name: sum(row[name]["answer"].strip() == row["huggingface"]["answer"].strip() for row in rows)
            for name in llms
            if name != "huggingface"
        },
        "observed": {name: observe(llms[name], module) for name, module in modules.items()},
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1))
    setup.engine.close()


if __name__ == "__main__":
    main()
