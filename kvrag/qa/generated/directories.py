"""Training domain: entries of directories, one thing each, whose names share their words.

What tells such passages apart is the whole name, said once; everything else could stand in any of them.
"""

from collections.abc import Mapping

from kvrag.qa.generated.drafting import Draw, Fact, Grammar
from kvrag.qa.generated.stories import Story, tell_stories
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "STORIES", "make_topic"]

_PARTS = 5
"""Words that the names of a topic are made of, of each kind: 25 names, of which 8 to 12 are taken."""

GRAMMAR: Grammar = WORDS | {
    "stem": (
        *("Anchor", "Beacon", "Cedar", "Compass", "Copper", "Crown", "Eagle", "Falcon", "Garden", "Granite", "Harbour"),
        *("Ivy", "Jasmine", "Lantern", "Lotus Row", "Magnolia", "Meridian Way", "Olive", "Orchid", "Park", "Pearl"),
        *("Phoenix", "Plaza", "Prince", "Regent", "River", "Rose", "Saffron", "Station", "Summit", "Tulip", "Union"),
        *("Valley", "Victoria", "Violet", "Windmill", "Abbey", "Bay", "Canal", "Central"),
    ),
    "tail": (
        *("Gate", "Court", "House", "View", "Corner", "Terrace", "Point", "Hall", "Place", "Heights", "Green", "Walk"),
        *("Quarter", "Yard", "Crescent", "Field", "Bridge", "Mews", "Arch", "Steps"),
    ),
    "given": WORDS["first"],
    "family": ("{surname_1}{surname_2}{surname_3}",),
    "line": ("{brand_1}{brand_3}", "{brand_1}{brand_2}{brand_3}"),
    "type": ("{letter}{2-9}0", "{100-990}", "{letter}{letter}{1-9}", "{Mini|Max|Plus|Duo|Eco|Pro} {2-9}"),
    "filler": (
        "{Changes|Corrections} to this {entry|listing} {reach us|can be sent} {by post|through the form}.",
        "The {picture|photograph} {shows|was taken on} {an ordinary weekday|a quiet afternoon}.",
        "{Visitors|Guests|Readers} {gave|left} {mostly kind|mixed|few} {comments|remarks} {this season|so far}.",
        "{Further|More} {details|notes} {are kept|stand} in the {annex|printed edition|appendix}.",
        "{Like all entries|As always}, this one {was checked|is revised} {once a year|every spring|by two people}.",
        "{Please mention|Kindly refer to} the directory when {writing|calling}, {thank you|we are grateful}.",
        "{Nearby|Around it} {one finds|there are} {shops and a bakery|a small park|two bus stops|a post office}.",
        "{Some|Many} {neighbours|regulars} {know it|speak of it} {by its old name|only by the sign outside}.",
        "{Access|The entrance} is {step-free|through the courtyard|from the back} {since the repairs|for now}.",
        "{Complaints go|Praise goes} to the {front office|secretary} {in writing|on paper}.",
        "{An older edition|The previous printing} {had|carried} {a misprint|fewer lines} {here|at this point}.",
        "{Nothing else|Little more} {is on file|has been handed in} {to date|since the last revision}.",
    ),
}

_PHONE = Fact(
    "{020-089} {100-999} {1000-9999}",
    ("{Call|Ring|Telephone}: {value}.", "{It can be reached|One gets through} {on|under} {value}.", "Phone {value}."),
    ("What is the {phone|telephone} number of {name}?", "{Under|On} which number can {name} be reached?"),
)
_OWNER = Fact(
    "{person}",
    ("The {owner|proprietor} is {value}.", "{value} {owns|has owned} it {for years|since the last sale}."),
    ("Who {owns|is the owner of} {name}?", "What is the name of the {owner|proprietor} of {name}?"),
)
_STREET = Fact(
    "{2-190} {street}",
    ("{Address|Find it at}: {value}.", "It {stands|is located} at {value}.", "{Post goes|Deliveries go} to {value}."),
    (
        "What is the address of {name}?",
        "At {which|what} address {is|does one find} {name}?",
        "Where is {name} located?",
    ),
)
_OPENED = Fact(
    "{1902-2018}",
    (
        "It {opened|began} in {value}.",
        "{value} was {its first year|the year of its founding}.",
        "{Since|From} {value}.",
    ),
    ("In {which|what} year did {name} open?", "Since {when|what year} has {name} existed?"),
)


def _house(counted: str, singular: str, low: int, high: int) -> Mapping[str, Fact]:
    """Facts about a house that has a number of something."""
    size = Fact(
        f"{{{low}-{high}}} {counted}",
        (
            "It {has|counts|offers} {value}.",
            "{value} {are available|make up the whole}.",
            "{Size|Extent}: {value}.",
        ),
        (
            f"How many {counted} does {{name}} have?",
            f"{{What|Which}} number of {counted} {{is given|is listed}} for {{name}}?",
        ),
    )
    closed = Fact(
        "{weekday}",
        (f"The {singular} is {{closed|shut}} on {{value}}s.", "{value} is {the day of rest|when nobody is in}."),
        ("On {which|what} weekday is {name} {closed|shut}?", "{Which|What} is the closing day of {name}?"),
    )
    roof = Fact(
        "{colour} {material}",
        ("The {sign|front} is of {value}.", "{In|Of} {value}, not {other}, is the front."),
        ("What is the {front|sign} of {name} made of?", "{Which|What} material has the front of {name}?"),
    )
    return {"phone": _PHONE, "owner": _OWNER, "street": _STREET, "opened": _OPENED} | {
        "size": size,
        "closed": closed,
        "front": roof,
    }


STORIES = (
    Story(
        "Hotels",
        "{stem} {tail} {Hotel|Hotel|Inn}",
        ("{name}.", "{name} {welcomes travellers|is a place to stay}.", "{Entry|Listing}: {name}."),
        _house("rooms", "house", 8, 240),
    ),
    Story(
        "Restaurants",
        "{stem} {tail} {Kitchen|Kitchen|Grill}",
        ("{name}.", "{name} {serves food|sets its tables} {all year|in every season}.", "{Entry|Listing}: {name}."),
        _house("seats", "restaurant", 18, 190),
    ),
    Story(
        "Clinics",
        "{stem} {tail} {Clinic|Clinic|Practice}",
        ("{name}.", "{name} {receives patients|takes appointments}.", "{Entry|Listing}: {name}."),
        _house("beds", "clinic", 6, 390),
    ),
    Story(
        "Staff",
        "{given} {family}",
        ("{name}.", "{name} {works here|is on the staff}.", "{Colleague|Member of staff}: {name}."),
        {
            "room": Fact(
                "room {letter}{100-999}",
                ("{Desk|Office}: {value}.", "{Come to|Knock at} {value} {any time|in the morning}."),
                (
                    "In {which|what} room does {name} sit?",
                    "{Which|What} room is {name} in?",
                    "{Which|What} room has {name}?",
                ),
            ),
            "extension": Fact(
                "extension {1000-9999}",
                ("{Dial|Call} {value}.", "{Reachable|To be reached} {on|through} {value}."),
                ("{What is|What was} the extension of {name}?", "On {which|what} extension does {name} answer?"),
            ),
            "department": Fact(
                "{Purchasing|Payroll|Logistics|Marketing|Research|Legal|Customer Care|Quality|Training} {1-9}",
                ("{Department|Unit}: {value}.", "{Belongs to|Has been part of} {value} {for some time|}."),
                ("{Which|What} department does {name} belong to?", "In {which|what} department is {name}?"),
            ),
            "manager": Fact(
                "{person}",
                ("{Reports to|The manager is} {value}.", "{value} {is the superior|signs the holidays}."),
                ("Who {is|was} the {manager|superior} of {name}?", "To whom does {name} report?"),
            ),
            "since": Fact(
                "{date}",
                ("{Joined|Started} on {value}.", "{The contract|Employment} {dates from|began on} {value}."),
                ("When did {name} {join|start}?", "On {which|what} date did {name} {join|start}?"),
            ),
            "badge": Fact(
                "{code}",
                (
                    "The badge {reads|carries} {value}.",
                    "{Badge|Pass}: {value}.",
                    "{value}, not {other}, is on the badge.",
                ),
                ("What is the {badge|pass} number of {name}?", "{Which|What} number is on the badge of {name}?"),
            ),
            "car": Fact(
                "{colour} {estate|saloon|van|bicycle|scooter|coupe}",
                ("{Parks|Comes with} a {value}.", "{In the car park|Outside}: a {value}."),
                ("What does {name} {park|come with}?", "Which vehicle {belongs to|has} {name}?"),
            ),
        },
    ),
    Story(
        "Appliances",
        "{line} {type}",
        ("{name}.", "{name} {is in the range|is sold} {again|as before}.", "{Model|Appliance}: {name}."),
        {
            "price": Fact(
                "{40-990}.{10-99} crowns",
                ("{It costs|Price} {value}.", "{value} {is asked|are due}, not {other} {as last year|any more}."),
                ("How much {is|does one pay for} {name}?", "What {is|was} the price of {name}?"),
            ),
            "power": Fact(
                "{60-2900} watts",
                ("It {draws|takes} {value}.", "{Power|Rating}: {value}."),
                ("How much power does {name} {draw|take}?", "What {is|was} the {power rating|rating} of {name}?"),
            ),
            "weight": Fact(
                "{1-48}.{1-9} kilograms",
                ("It {weighs|tips the scales at} {value}.", "{Weight|On the scales}: {value}."),
                ("How heavy {is|was} {name}?", "{What|How much} does {name} weigh?"),
            ),
            "made": Fact(
                "{place}",
                ("{Made|Assembled} in {value}.", "{It comes from|The factory is in} {value}."),
                ("Where is {name} {made|assembled}?", "In {which|what} town is {name} {made|assembled}?"),
            ),
            "finish": Fact(
                "{colour} and {colour}",
                ("{Finish|Housing}: {value}.", "The {housing|case} comes in {value}."),
                ("What colours does {name} come in?", "In {which|what} colours is {name} {sold|finished}?"),
            ),
            "part": Fact(
                "{code}",
                ("{Spare filters|Filters} {have|carry} the number {value}.", "Filter: {value}, not {other}."),
                ("{Which|What} filter {fits|does one need for} {name}?", "What is the filter number of {name}?"),
            ),
            "tester": Fact(
                "{person}",
                ("{Tested|Inspected} by {value}.", "{value} {tried it out|signed the test sheet}."),
                ("Who {tested|inspected} {name}?", "{Which person|Who} signed the test sheet of {name}?"),
            ),
        },
    ),
)


def make_topic(seed: str) -> Topic:
    """Entries of one directory."""
    first = Draw(seed, GRAMMAR)
    story = first.pick(STORIES)
    few = {slot: _few(first, slot) for slot in ("stem", "tail", "given", "family", "line", "type")}
    return tell_stories(
        Draw(f"{seed}/entries", GRAMMAR | few), story, _write, facts=(5, 7), words=(12, 12, 25, 50, 100, 200)
    )


def _few(draw: Draw, slot: str) -> tuple[str, ...]:
    """What a slot becomes in this topic."""
    return tuple(dict.fromkeys(draw.compose(draw.pick(draw.grammar[slot])) for _ in range(_PARTS)))


def _write(draw: Draw, sentences: list[str]) -> str:
    """An entry: in one paragraph, or its name as a line of its own."""
    first, *others = sentences
    return first + draw.pick((" ", "\n", "\n\n")) + draw.pick((" ", " ", "\n")).join(others)
