"""The streaming web page: over HTTP, and in a real browser where there is one."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from kvrag.completion import Completion
from kvrag.demo import retrieval
from kvrag.demo.collection import load_sections
from kvrag.model import LanguageModel
from tests.cli.word_embedding import WordEmbedding
from tests.test_examples import ROOT, load_example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
QUESTION = "What is the Museum of Drift and Wreck?"
PAGE = ROOT / "examples" / "streaming_web_page.py"


@pytest.fixture
def endless(monkeypatch) -> None:
    """No answer ends before it has all the tokens it may have, which are 100."""
    monkeypatch.setattr(LanguageModel, "stop_ids", frozenset())


@pytest.fixture
def slow(endless, monkeypatch) -> None:
    """Every pass takes 20 ms more, so that an answer takes 2 s or longer."""
    forward = LanguageModel.forward

    def delayed(self: LanguageModel, rows: Sequence[Any], **options: Any) -> Any:
        time.sleep(0.02)
        return forward(self, rows, **options)

    monkeypatch.setattr(LanguageModel, "forward", delayed)


@pytest.fixture
def url(tiny_demo, monkeypatch) -> Iterator[str]:
    """What the example serves, run as a user runs it, over six sections."""
    module, servers = load_example(PAGE), []
    monkeypatch.setattr(module, "load_sections", lambda: load_sections()[:6])
    monkeypatch.setattr(retrieval, "sentence_embedding", WordEmbedding)

    def serve(app, **options) -> None:
        servers.append(uvicorn.Server(uvicorn.Config(app, **options)))
        servers[0].run()

    monkeypatch.setattr(uvicorn, "run", serve)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    thread = threading.Thread(target=module.main, args=("demo", str(port)))
    thread.start()
    wait(lambda: not thread.is_alive() or (servers and servers[0].started))
    assert servers, "the example ended before it served anything"
    yield f"http://127.0.0.1:{port}"
    servers[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def wait(until: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def read_events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


@contextmanager
def asking(url: str) -> Iterator[Iterator[tuple[str, Any]]]:
    with httpx.stream("GET", f"{url}/answers", params={"question": QUESTION}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read_events(response)


def test_sources_come_first_then_the_answer_in_pieces_then_what_it_took(url, endless, completions):
    with asking(url) as events:
        (first, sources), *pieces, (last, told) = list(events)
    assert (first, last) == ("sources", "done")
    assert {name for name, _ in pieces} == {"piece"}
    assert len(pieces) > 10
    (completion,) = completions
    assert "".join(piece for _, piece in pieces) == completion.text
    assert sources[0] == load_sections()[0].text
    assert told["cached_tokens"] == completion.usage.cached_tokens > 200
    assert told["first_token_ms"] == completion.timings.first_token_ms > 0


def test_closing_the_connection_ends_the_request(url, slow, completions: list[Completion]):
    with asking(url) as events:
        while next(events)[0] != "piece":
            pass
    wait(lambda: completions)
    assert completions[0].finish_reason == "cancelled"
    assert completions[0].usage.completion_tokens < 100


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install it")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.slow
def test_the_page_shows_answers_as_they_come_and_stops_when_told(url, slow, completions, browser, tmp_path: Path):
    page, problems = browser.new_page(), []
    page.set_default_timeout(120_000)  # ms; no judgement on how fast the machine is
    page.on("pageerror", lambda error: problems.append(error))
    page.goto(url)
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    answer, facts, summary = page.locator("#answer"), page.locator("#facts"), page.locator("summary")
    page.wait_for_function("document.querySelector('#answer').textContent.length > 0")
    early = answer.text_content()
    assert not completions  # what is shown came before the answer was complete
    facts.get_by_text("First token after").wait_for()
    (completion,) = completions
    assert answer.text_content() == completion.text.replace("\r\n", "\n")
    assert completion.text.startswith(early)
    assert f"{completion.usage.cached_tokens} of {completion.usage.prompt_tokens} prompt tokens" in facts.text_content()
    assert (summary.count(), summary.first.text_content()) == (5, "The Museum of Drift and Wreck")
    summary.first.click()
    assert page.locator("details[open] p").inner_text().startswith("The Museum of Drift and Wreck stands")

    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("document.querySelector('#answer').textContent.length > 0")
    page.get_by_role("button", name="Stop").click()
    assert facts.text_content() == "Stopped."
    wait(lambda: len(completions) == 2)
    assert completions[1].finish_reason == "cancelled"
    assert problems == []
