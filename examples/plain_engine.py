"""Packets without a framework: build them once, then ask; the prompt stays an ordinary prompt."""

import sys
import tempfile

from kvrag import PacketEngine
from kvrag.demo.collection import load_sections


def main(model: str = "demo") -> None:
    chunks = [section.text for section in load_sections()[:6]]
    with tempfile.TemporaryDirectory() as folder, PacketEngine.from_pretrained(model, store=folder) as engine:
        report = engine.build(chunks)
        print(f"{report.built} packets, {report.bytes / 1e6:.0f} MB")
        question = [
            {"role": "system", "content": "Answer from these documents.\n\n" + "\n\n".join(chunks)},
            {"role": "user", "content": "What is the Museum of Drift and Wreck?"},
        ]
        for strategy in ("kv-packet", "full-recompute"):
            answer = engine.generate(question, strategy=strategy, max_new_tokens=40)
            print(f"{strategy}: {answer.timings.first_token_ms:.0f} ms, {answer.usage}\n  {answer.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
