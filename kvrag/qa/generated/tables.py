"""Training domain: tables with captions, in Markdown, CSV or aligned columns."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvrag.qa.generated.drafting import Draft, Draw, Grammar, sentence_case, to_topic
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "SUBJECTS", "Subject", "make_topic"]


@dataclass(frozen=True)
class Subject:
    """What tables are about.

    Attributes:
        caption: with slots.
        head: of the first column.
        row: slots of a row's name.
        columns: slots of the cells by the column's head.
    """

    caption: str
    head: str
    row: str
    columns: Mapping[str, str]


GRAMMAR: Grammar = WORDS | {
    "dish": ("{spiced|baked|cold|smoked|sweet} {dish_1} {soup|pie|salad|stew|rolls|dumplings|fritters}",),
    "dish_1": (
        *("beetroot", "barley", "lentil", "mushroom", "herring", "chestnut", "parsnip", "plum", "rhubarb", "walnut"),
        *("cauliflower", "apricot", "aubergine", "chickpea", "fennel", "goat cheese", "mackerel", "pear"),
    ),
    "course": ("{course_0} {course_1}",),
    "course_0": ("Introductory", "Advanced", "Practical", "Evening", "Applied", "Intensive", "Weekend", "Online"),
    "course_1": (
        *("Pottery", "Welding", "Bookkeeping", "Statistics", "Drawing", "Carpentry", "Typing", "First Aid", "Chess"),
        *("Soldering", "Astronomy", "Cooking", "Swimming", "Fencing", "Photography", "Weaving", "Sewing", "Singing"),
    ),
    "note": (
        "{All figures|The figures} are {provisional|rounded|as reported}.",
        "{Source|Compiled by}: {company}.",
        "{Revised|Printed|Issued} on {date}.",
        "{Empty|Missing} rows were {left out|dropped} {on purpose|by the editor}.",
        "{The order of rows|The sequence} has no {meaning|significance}.",
    ),
}

SUBJECTS = (
    Subject(
        "Trains and buses from {place}",
        "Stop",
        "{place}",
        {
            "Departure": "{4-22}:{10-59}",
            "Platform": "{1-19}{a|b|c|d}",
            "Fare": "{2-68}.{10-99}",
            "Duration": "{8-190} min",
            "Operator": "{company}",
            "Distance": "{3-410}.{1-9} km",
        },
    ),
    Subject(
        "Results of the {place} run",
        "Runner",
        "{person}",
        {
            "Club": "{brand} {place_1}",
            "Time": "{1-4}:{10-59}:{10-59}",
            "Bib": "{1000-9999}",
            "Age": "{16-79}",
            "Shoe": "{brand}",
            "Town": "{place}",
        },
    ),
    Subject(
        "Menu of the {surname} inn",
        "Dish",
        "{dish}",
        {
            "Price": "{3-39}.{10-95}",
            "Energy": "{110-980} kcal",
            "Cook": "{person}",
            "Served with": "{colour} {bread|rice|beans|cabbage|sauce}",
            "Minutes": "{4-58} min",
            "Salt": "{1-5}.{01-99} g",
        },
    ),
    Subject(
        "Courses at {place} college",
        "Course",
        "{course}",
        {
            "Teacher": "{person}",
            "Room": "{letter}{100-499}",
            "Starts": "{month} {1-28}",
            "Fee": "{20-640} crowns",
            "Places": "{6-48}",
            "Hour": "{weekday} {8-20}:{10-55}",
        },
    ),
    Subject(
        "Weather stations of {place} county",
        "Station",
        "{place}",
        {
            "Altitude": "{4-2900} m",
            "Rainfall": "{210-2400} mm",
            "Warmest day": "{month} {1-28}",
            "Wind": "{2-39}.{1-9} m/s",
            "Observer": "{person}",
            "Since": "{1901-1999}",
        },
    ),
    Subject(
        "Price list of {company}",
        "Article",
        "{brand} {100-999}",
        {
            "Price": "{4-990}.{10-99}",
            "Colour": "{colour}",
            "Length": "{11-290} cm",
            "Stock": "{1-840}",
            "Made of": "{material}",
            "Made in": "{place}",
        },
    ),
)

_ASKS = (
    'In the table "{caption}", what is the {column} of {name}?',
    "{caption}: what {is given|is listed|stands} {as|under} {column} for {name}?",
    "{What|Which value} {stands|is} in the column {column} for {name}?",
    "What does the table {say|give|show} under {column} for {name}?",
    "{Give|Read off} the {column} of {name}.",
    "What is the {column} in the row of {name}?",
)
_Rows = Sequence[Sequence[str]]


def make_topic(seed: str) -> Topic:
    """Tables on one subject, each with a caption of its own."""
    draw = Draw(seed, GRAMMAR)
    subject = draw.pick(SUBJECTS)
    styles = draw.some(_STYLES, 1, len(_STYLES))
    return to_topic(
        f"Tables: {subject.head.lower()}", [_passage(draw, subject, styles) for _ in range(draw.pick((8, 9, 10)))]
    )


def _passage(draw: Draw, subject: Subject, styles: list[Callable[[Draw, _Rows], str]]) -> Draft:
    caption = draw.name(subject.caption)
    columns = draw.some(subject.columns, 3, 5)
    names = [draw.name(subject.row) for _ in range(draw.number(6, 12))]
    cells = [[draw.value(column, subject.columns[column]) for column in columns] for _ in names]
    table = draw.pick(styles)(
        draw, [[subject.head, *columns], *([n, *row] for n, row in zip(names, cells, strict=True))]
    )
    head = draw.pick(("{caption}", "Table: {caption}", "**{caption}**", "## {caption}", "{caption} ({year})"))
    parts = [draw.compose(head, caption=caption), table]
    if draw.random.random() < 0.6:
        parts.insert(draw.pick((1, 2)), " ".join(draw.fill(draw.pick((5, 15, 30)), "note")))
    asked: list[tuple[str, str]] = []
    for row in draw.some(range(len(names)), 2, 4):
        place = draw.number(0, len(columns) - 1)
        question = draw.compose(draw.pick(_ASKS), caption=caption, column=columns[place], name=names[row])
        asked.append((sentence_case(question), cells[row][place]))
    return Draft("\n\n".join(parts), asked)


def _markdown(draw: Draw, rows: _Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + draw.pick((" --- |", "---|", ":--|")) * len(rows[0]), *lines[1:]])


def _separated(draw: Draw, rows: _Rows) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=draw.pick((",", ";", "\t")), lineterminator="\n").writerows(rows)
    return out.getvalue().strip()


def _aligned(draw: Draw, rows: _Rows) -> str:
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join("".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _listed(draw: Draw, rows: _Rows) -> str:
    head, *body = rows
    mark = draw.pick(("; ", ", ", " / "))
    return "\n".join(
        f"{row[0]}: " + mark.join(f"{h} {c}" for h, c in zip(head[1:], row[1:], strict=True)) for row in body
    )


_STYLES: tuple[Callable[[Draw, _Rows], str], ...] = (_markdown, _markdown, _separated, _aligned, _listed)
