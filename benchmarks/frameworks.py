"""What both comparisons with the frameworks' own integrations of local models ask, and how they measure it.

Either side calls a logits processor for every token, when the scores are there and no token has been picked.
`TokenClock` is one, so both sides are timed at the same point; the pieces of text that a reader of a stream sees are no
measure, since transformers' streamer holds them back up to the end of a word.
"""

import argparse
import asyncio
import json
import logging
import platform
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from kvrag import PacketEngine
from kvrag.demo.collection import Question, load_questions, load_sections
from kvrag.demo.weights import demo_folder
from kvrag.evaluation.metrics import contains_answer

PROMPT = "Tell me everything that you know about the sea."
LONG = 300  # tokens; seconds on any CPU
TOKENS = 40


class TokenClock:
    """A logits processor that notes when the scores of each token were there.

    Args:
        never: ids that are not picked, so that an answer has the length that was asked for.

    Attributes:
        times: in seconds, one for each token.
        prompt: ids that the model was given, once the first time is there.
    """

    def __init__(self, never: Sequence[int] = ()) -> None:
        self.times: list[float] = []
        self.prompt: list[int] = []
        self._never = torch.tensor(never, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        self.prompt = self.prompt or input_ids[0].tolist()
        return scores.index_fill(-1, self._never, -torch.inf)


class Side(ABC):
    """One of the two integrations; answers are greedy and have `limit` tokens at most."""

    @abstractmethod
    def rag(self, question: str, texts: Sequence[str], limit: int, clock: TokenClock) -> Iterator[str]:
        """The stream of an application that retrieves all of these texts."""

    @abstractmethod
    def answer(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> tuple[str, bool]:
        """An answer to one message, with options of the call, and whether it reports usage."""

    @abstractmethod
    def stream(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> Iterator[str]:
        """The same piece by piece."""

    @abstractmethod
    async def aanswer(self, prompt: str, limit: int, clock: TokenClock) -> str:
        """The same for an event loop."""

    @abstractmethod
    def astream(self, prompt: str, limit: int, clock: TokenClock) -> AsyncIterator[str]:
        """The same piece by piece for an event loop."""


def demo_parts(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The demo model as an application with transformers has it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(folder)


def with_two_beginnings(folder: Path) -> PreTrainedTokenizerBase:
    """The demo's tokenizer in the manner of Llama's and Gemma's: it and its template both write the first token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return tokenizer


def tasks(questions: int, documents: int) -> list[tuple[Question, list[str]]]:
    """Questions, each with the section that answers it behind others."""
    sections = load_sections()
    chosen = []
    for question in load_questions()[:questions]:
        others = [section.text for section in sections if section.name != question.source][: documents - 1]
        chosen.append((question, [*others, *(s.text for s in sections if s.name == question.source)]))
    return chosen


def compare(sides: dict[str, Side], questions: int, documents: int, limit: int, ends: Sequence[int]) -> dict[str, Any]:
    """Ask every side every question, taking turns in going first: once for the answer, once for `limit` tokens' times.

    The first question is asked twice; what comes first in a process takes longer.
    """
    asked = tasks(questions, documents)
    rows: list[dict[str, Any]] = []
    for number, (question, texts) in enumerate([asked[0], *asked]):
        row: dict[str, Any] = {"question": question.question, "reference": question.reference}
        for name in list(sides)[:: 1 if number % 2 else -1]:
            rag = sides[name].rag
            answer = "".join(rag(question.question, texts, limit, TokenClock()))
            clock = TokenClock(never=ends)
            times = timed(partial(rag, question.question, texts, limit, clock), clock)
            row[name] = times | {"answer": answer, "right": contains_answer(answer, [question.reference])}
        rows += [row] if number else []
        print(question.question, {name: row[name]["first_token_ms"] for name in sides}, flush=True)
    base = next(iter(sides))
    summary = {
        name: {
            **{what: spread([row[name][what] for row in rows]) for what in timed_values(rows[0][name])},
            "first_token_times_sooner": spread(
                [row[base]["first_token_ms"] / row[name]["first_token_ms"] for row in rows]
            ),
            "right_answers": sum(row[name]["right"] for row in rows),
            "same_answer_as_the_first": sum(row[name]["answer"].strip() == row[base]["answer"].strip() for row in rows),
        }
        for name in sides
    }
    return {"sides": summary, "rows": rows}


def timed(pieces: Callable[[], Iterator[str]], clock: TokenClock) -> dict[str, float]:
    """Milliseconds from the question to the first token and to the first text, and between tokens."""
    began = time.perf_counter()
    first_text = 0.0
    for piece in pieces():
        if piece and not first_text:
            first_text = time.perf_counter()
    first, last = clock.times[0], clock.times[-1]
    return {
        "first_token_ms": round(1000 * (first - began), 1),
        "first_text_ms": round(1000 * (first_text - began), 1),
        "per_token_ms": round(1000 * (last - first) / (len(clock.times) - 1), 2),
        "tokens": len(clock.times),
    }


def timed_values(row: dict[str, Any]) -> list[str]:
    return [name for name in row if name.endswith("_ms")]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}


def observe(side: Side, ends: Sequence[int], limit_name: str) -> dict[str, Any]:
    """What a side does beyond answering: stop strings, options of a call, usage, event loops, readers who leave.

    Args:
        side: to ask.
        ends: ids that end answers.
        limit_name: what the framework calls the number of tokens of an answer.
    """
    clock = TokenClock(never=ends)
    whole, reports_usage = side.answer(PROMPT, TOKENS, clock)
    at = next(at for at in range(20, len(whole)) if whole.find(whole[at : at + 8]) == at)
    stop = whole[at : at + 8]
    stopped = {}
    for kind in ("answer", "stream"):
        spent = TokenClock(never=ends)
        given = getattr(side, kind)(PROMPT, TOKENS, spent, stop=[stop])
        text = given[0] if kind == "answer" else "".join(given)
        stopped[kind] = {"ends_there": text.strip() == whole[:at].strip(), "tokens": len(spent.times)}
    few = TokenClock(never=ends)
    side.answer(PROMPT, TOKENS, few, **{limit_name: 5})
    return {
        "stop_string": stop,
        "stopped_answer": stopped["answer"],
        "stopped_stream": stopped["stream"],
        f"keeps_{limit_name}_of_a_call": len(few.times) == 5,
        "reports_usage": reports_usage,
        "event_loop": asyncio.run(_on_a_loop(side, ends)),
        "tokens_in_the_second_after_a_reader_left": _after_leaving(side, ends),
    }


async def _on_a_loop(side: Side, ends: Sequence[int]) -> dict[str, Any]:
    """What becomes of asynchronous calls, and how often the event loop came round between two tokens of an answer."""
    clock = TokenClock(never=ends)
    task, rounds = asyncio.create_task(side.aanswer(PROMPT, TOKENS, clock)), 0
    while not task.done():
        await asyncio.sleep(0.001)
        rounds += bool(clock.times)
    seen: dict[str, Any] = {"answer": _outcome(task.exception())}
    try:
        async for _ in side.astream(PROMPT, 4, TokenClock()):
            pass
        seen["stream"] = _outcome(None)
    except Exception as error:
        seen["stream"] = _outcome(error)
    return seen | {"rounds_between_tokens": round(rounds / max(1, len(clock.times) - 1), 1)}


def _outcome(error: BaseException | None) -> str:
    return "answers" if error is None else type(error).__name__


def _after_leaving(side: Side, ends: Sequence[int]) -> int:
    """Tokens computed in the second after a stream was closed behind its first piece; returns when no more come."""
    clock = TokenClock(never=ends)
    with closing(side.stream(PROMPT, LONG, clock)) as stream:
        next(stream)
    time.sleep(1.0)  # the pass that was on its way, also on a machine with more to do
    before = len(clock.times)
    time.sleep(1.0)
    computed, last = len(clock.times) - before, 0
    while last != len(clock.times):
        last = len(clock.times)
        time.sleep(1.0)
    return computed


def first_tokens(side: Side, bos: int) -> int:
    """How many first tokens the model is given in front of a message."""
    clock = TokenClock()
    side.answer(PROMPT, 2, clock)
    return next(number for number, token in enumerate([*clock.prompt, -1]) if token != bos)


def setting(*packages: str) -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "date": date.today().isoformat(),
        "model": "demo",
        "dtype": "bfloat16",
        "device": "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in (*packages, "transformers", "torch")},
    }


def run(
    result: str,
    theirs: Callable[[Any, PreTrainedTokenizerBase], Side],
    ours: Callable[[PacketEngine, str | None], Side],
    *,
    package: str,
    core: str,
    limit_name: str,
) -> None:
    """What both commands do, from their options to the file.

    Args:
        result: name of the file, unless --out gives another.
        theirs: makes the framework's own side of a model and a tokenizer.
        ours: makes kvrag's side of an engine and a strategy, None being the engine's.
        package: of the framework's own integration.
        core: the framework's package.
        limit_name: what the framework calls the number of tokens of an answer.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / result)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    folder = demo_folder("demo")
    model, tokenizer = demo_parts(folder)
    ends = [tokenizer.eos_token_id]
    with tempfile.TemporaryDirectory() as store:
        engine = PacketEngine.from_pretrained("demo", store=f"{store}/packets", computed_bytes=0)
        beginnings = with_two_beginnings(folder)
        other = PacketEngine.from_pretrained(
            (demo_parts(folder)[0], beginnings), store=f"{store}/other", adapter="none", strategy="no-recompute"
        )
        with engine, other:
            sides = {
                package: theirs(model, tokenizer),
                "kvrag, full-recompute": ours(engine, "full-recompute"),
                "kvrag, packets": ours(engine, None),
            }
            engine.build(text for _, texts in tasks(options.questions, options.documents) for text in texts)
            found = setting(core, package) | {
                "documents": options.documents,
                **compare(sides, options.questions, options.documents, options.tokens, ends),
            }
            with_two = {package: theirs(model, beginnings), "kvrag, packets": ours(other, None)}
            found["observed"] = {
                name: observe(sides[name], ends, limit_name)
                | {"first_tokens_of_a_prompt": first_tokens(twice, beginnings.bos_token_id)}
                for name, twice in with_two.items()
            }
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))
