"""What the demo reports: times, and which answers are right."""

import json

import pytest

from kvrag.demo.report import Answer, DemoReport, DemoRow
from kvrag.evaluation.metrics import contains_answer


def row(packet_right, full_right, packet_ms):
    packet = Answer("It was in 1788.", packet_right, packet_ms, 100, 90, 10)
    return DemoRow("When?", "1788", packet, Answer("In 1790.", full_right, 100.0, 100, 0, 100))


def test_right_answers_and_ratios_are_counted():
    rows = [row(True, False, 10.0), row(True, True, 20.0), row(False, True, 50.0), row(True, False, 25.0)]
    report = DemoReport(rows, "demo", "cpu", "float32", "untrained", "kv-packet", 8)
    assert (report.packet_right, report.full_right) == (3, 2)
    told = json.loads(json.dumps(report.as_json()))
    assert (told["packet_right"], told["full_right"], told["ttft_ratio_median"]) == (3, 2, 4.5)
    assert [(q["packet"]["right"], q["full"]["right"]) for q in told["questions"]] == [
        (True, False),
        (True, True),
        (False, True),
        (True, False),
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The keeper was JENNA PASK, of course.", "Jenna Pask", True),
        ("11400 goats", "11,400", True),
        ("4.2 tonnes.", "4.2 tonnes", True),
        ("12050", "2050", False),
        ("", "2050", False),
        ("Jenna", "Jenna Pask", False),
    ],
)
def test_an_answer_is_right_when_the_reference_stands_in_it(answer, reference, right):
    assert contains_answer(answer, [reference]) == right
