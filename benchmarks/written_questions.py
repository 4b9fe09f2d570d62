"""Have a model write questions and answers about the passages of a file, in SQuAD's schema.

python benchmarks/written_questions.py multihop.jsonl.gz --limit 1500 --out multihop-written.json
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

from kvrag.qa import QuestionSet, load_questions
from kvrag.sources import open_model
from kvrag.training.writing import with_answers, with_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file of passages; its own questions are not read")
    parser.add_argument("--limit", type=int, default=1500, help="passages to ask about")
    parser.add_argument("--model", default="demo-base", help="writes the questions")
    parser.add_argument("--reader", default="demo", help="answers them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    questions = load_questions(args.data)
    places = [(t, p) for t, topic in enumerate(questions.topics) for p in range(len(topic.passages))]
    chosen = set(random.Random(0).sample(places, min(args.limit, len(places))))
    topics = (
        replace(topic, questions=(), passages=tuple(text for p, text in enumerate(topic.passages) if (t, p) in chosen))
        for t, topic in enumerate(questions.topics)
    )
    bare = QuestionSet(questions.name, tuple(topic for topic in topics if topic.passages))
    written = with_answers(open_model(args.reader), with_questions(open_model(args.model), bare, 0, requests=3))
    articles = []
    for topic in written.topics:
        asked = [[q for q in topic.questions if q.passages == (p,) and q.answers] for p in range(len(topic.passages))]
        paragraphs = [
            {"context": text, "qas": [{"question": q.text, "answers": [{"text": q.answers[0]}]} for q in about]}
            for text, about in zip(topic.passages, asked, strict=True)
        ]
        articles.append({"title": topic.title, "paragraphs": paragraphs})
    args.out.write_text(json.dumps({"data": articles}) + "\n")


if __name__ == "__main__":
    main()
