"""Training domain: records of stock, shipments, vehicles and the like, in lines, lists, JSON or sentences."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvrag.qa.generated.drafting import Draft, Draw, Grammar, sentence_case, to_topic
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "KINDS", "Kind", "make_topic"]


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        title: of a topic.
        name: slots of what a record is about.
        fields: slots of the value by label.
    """

    title: str
    name: str
    fields: Mapping[str, str]


GRAMMAR: Grammar = WORDS | {
    "tool": (
        *("hinge", "bolt set", "clamp", "valve", "bracket", "pulley", "gasket", "lamp holder", "drill bit", "chisel"),
        *("spring", "bearing", "hose", "padlock", "trowel", "sieve", "funnel", "crate", "shelf", "castor"),
    ),
    "make": ("flat", "long", "heavy", "folding", "double", "narrow", "angled", "coated", "threaded", "padded"),
    "goods": (
        *("roof tiles", "bicycle frames", "tea", "printer paper", "olive oil", "garden chairs", "window glass"),
        *("ball bearings", "cotton yarn", "dried apricots", "car batteries", "toys", "floor boards", "wheat flour"),
    ),
    "plant": (
        *("tomato", "bean", "pumpkin", "carrot", "pepper", "lettuce", "sunflower", "cucumber", "pea", "onion", "basil"),
        *("radish", "spinach", "cabbage", "sweetcorn", "leek"),
    ),
    "soil": ("sandy loam", "heavy clay", "chalk", "peat", "rich compost", "gravelly ground", "silt", "leaf mould"),
    "water": ("well water", "river water", "milk", "diesel oil", "soil", "paint", "brine", "flour dust", "sediment"),
    "remark": (
        "{Checked|Entered|Confirmed|Updated} {by hand|after the inventory|by the night shift|without changes}.",
        "{No|A small} {discrepancy|deviation} was {noted|found} {this time|at the last check|in the second pass}.",
        "{Handle|File|Store} as {usual|agreed|described in the house rules}.",
        "The {paper copy|previous sheet|receipt} is kept {in the office|with the others|for ten years}.",
        "{Ask|Inform} the {front desk|office|accounts department} {before changing anything|in case of doubt}.",
        "Earlier {entries|versions} of this {sheet|entry} are {no longer valid|kept elsewhere|void}.",
    ),
}

KINDS = (
    Kind(
        "Stock items",
        "{brand} {make} {tool}",
        {
            "item number": "{code}",
            "shelf": "aisle {1-60}, bay {letter}",
            "quantity on hand": "{3-990} pieces",
            "unit price": "{1-240}.{10-99} crowns",
            "supplier": "{company}",
            "reorder level": "{4-88} boxes",
            "material": "{material}",
            "date of the last count": "{date}",
            "storekeeper": "{person}",
        },
    ),
    Kind(
        "Shipments",
        "shipment {letter}{letter}-{1000-9999}",
        {
            "port of loading": "{place}",
            "destination": "{place}",
            "carrier": "{company}",
            "departure date": "{date}",
            "expected arrival": "{date}",
            "number of pallets": "{2-96} pallets",
            "contents": "{goods}",
            "gross weight": "{110-9800} kg",
            "seal number": "{code}",
            "contact person": "{person}",
        },
    ),
    Kind(
        "Vehicles",
        "van {letter}{letter} {100-999} {letter}",
        {
            "mileage": "{11-290},{100-999} km",
            "driver": "{person}",
            "body colour": "{colour}",
            "garage": "{place}",
            "date of the next inspection": "{date}",
            "payload": "{420-1900} kg",
            "fuel card": "{code}",
            "workshop": "{company}",
        },
    ),
    Kind(
        "Laboratory samples",
        "sample {letter}-{1000-9999}-{10-99}",
        {
            "origin": "{place}",
            "material tested": "{water}",
            "pH value": "{4-9}.{10-99}",
            "lead content": "{1-90}.{1-9} mg/kg",
            "collector": "{person}",
            "collection date": "{date}",
            "storage temperature": "minus {4-80} degrees",
            "vessel": "{20-950} ml {glass|plastic|steel} bottle",
        },
    ),
    Kind(
        "Invoices",
        "invoice {letter}{letter}{letter}{100-999}",
        {
            "customer": "{company}",
            "amount": "{12-980}.{10-99} crowns",
            "due date": "{date}",
            "discount": "{2-25} percent",
            "clerk": "{person}",
            "cost centre": "{code}",
            "article": "{goods}",
            "place of delivery": "{place}",
        },
    ),
    Kind(
        "Flats to let",
        "flat at {2-190} {street}",
        {
            "monthly rent": "{410-2900} crowns",
            "floor area": "{24-190} square metres",
            "letting agent": "{person}",
            "move-in date": "{date}",
            "deposit": "{1-5},{100-999} crowns",
            "flooring": "{material}",
            "front door colour": "{colour}",
            "caretaker": "{person}",
        },
    ),
    Kind(
        "Seeds",
        "{brand} {plant}",
        {
            "sowing month": "{month}",
            "row spacing": "{12-95} cm",
            "time to harvest": "{31-180} days",
            "preferred soil": "{soil}",
            "plant height": "{14-260} centimetres",
            "breeder": "{person}",
            "packet contents": "{15-600} seeds",
            "catalogue code": "{code}",
        },
    ),
)

_ASKS = (
    "What is the {label} of {name}?",
    "What {label} is {recorded|given|listed|noted} for {name}?",
    "{Name|State|Give} the {label} of {name}.",
    "{Which value|What} does the {record|entry|sheet} of {name} {give|show|state} as {label}?",
    "For {name}, what is the {label}?",
    "{Look up|Find} {name}: what is its {label}?",
)
_SENTENCES = (
    "The {label} of {name} is {value}.",
    "Its {label} is {value}.",
    "As {label}, {value} is {entered|given|recorded}.",
    "{The record|The sheet|The entry} {gives|names|shows} {value} as the {label}.",
    "{label}: {value}.",
)
_Style = Callable[[Draw, str, dict[str, str]], str]


def make_topic(seed: str) -> Topic:
    """Records of one kind, most fields in all of them."""
    draw = Draw(seed, GRAMMAR)
    kind = draw.pick(KINDS)
    styles = draw.some(_STYLES, 1, len(_STYLES))
    return to_topic(kind.title, [_passage(draw, kind, styles) for _ in range(draw.number(8, 12))])


def _passage(draw: Draw, kind: Kind, styles: list[_Style]) -> Draft:
    parts: list[str] = []
    asked: list[tuple[str, str]] = []
    style = draw.pick(styles)
    length = draw.pick((40, 40, 70, 120, 200))
    while len(" ".join(parts).split()) < length:
        name = draw.name(kind.name)
        labels = draw.some(kind.fields, 6, 9)
        fields = {label: draw.value(label, kind.fields[label]) for label in labels}
        parts.append(style(draw, name, fields))
        if draw.random.random() < 0.5:
            parts.append(" ".join(draw.fill(draw.pick((8, 25, 45)), "remark")))
        asked += [(_ask(draw, label, name), value) for label, value in fields.items()]
    return Draft("\n\n".join(parts), draw.some(asked, 2, 4))


def _ask(draw: Draw, label: str, name: str) -> str:
    return sentence_case(draw.compose(draw.pick(_ASKS), label=label, name=name))


def _lines(draw: Draw, name: str, fields: dict[str, str]) -> str:
    head = draw.compose(
        draw.pick(("{name}", "Record: {name}", "# {name}", "Entry for {name}", "** {name} **")), name=name
    )
    form = draw.pick(("{}: {}", "- {}: {}", "{} = {}", "* {} - {}", "{} .... {}"))
    return "\n".join([sentence_case(head), *(form.format(sentence_case(label), v) for label, v in fields.items())])


def _run(draw: Draw, name: str, fields: dict[str, str]) -> str:
    return sentence_case(f"{name} - " + "; ".join(f"{label}: {value}" for label, value in fields.items()) + ".")


def _json(draw: Draw, name: str, fields: dict[str, str]) -> str:
    record = {draw.pick(("name", "id", "record", "title")): name, **fields}
    return json.dumps(record, indent=draw.pick((None, 1, 2, 4)))


def _prose(draw: Draw, name: str, fields: dict[str, str]) -> str:
    head = draw.pick(
        ("This is the {record|sheet|entry} of {name}.", "{Entry|Record|Sheet}: {name}.", "{name} is on file.")
    )
    said = [draw.compose(draw.pick(_SENTENCES), label=k, name=name, value=v) for k, v in fields.items()]
    return " ".join(map(sentence_case, [draw.compose(head, name=name), *said]))


_STYLES: tuple[_Style, ...] = (_lines, _lines, _run, _json, _prose, _prose)
