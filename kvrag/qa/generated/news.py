"""Training domain: reports of events, with places, numbers and organisations."""

from kvrag.qa.generated.drafting import Draw, Fact, Grammar
from kvrag.qa.generated.stories import Story, tell_stories
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "STORIES", "make_topic"]

GRAMMAR: Grammar = WORDS | {
    "filler": (
        "{Neighbours|Visitors|Shopkeepers} {described|spoke of|remembered} {a long day|mixed feelings|relief}.",
        "{Traffic|Public transport|Telephone service} was {slow|irregular|back to normal} {by noon|in the evening}.",
        "{Similar events|Comparable cases} have been {rare|reported before|frequent} in the {region|county}.",
        "{Photographs|Videos} {circulated|were shared} {widely|within minutes} {online|on local channels}.",
        "The {council|administration|regional office} {promised|announced} {more details|a full account} {soon|later}.",
        "{Some|A few} {questions|details} {remain open|could not be confirmed} {so far|at press time}.",
        "{Opinions|Reactions} {differ|were divided} {along familiar lines|from street to street}.",
        "{Forecasters|Observers|Officials} {expect|hope for} {calmer days|better news|little change}.",
        "{A reader|One caller|A passer-by} {wrote|told us} that {nobody was surprised|it could have been worse}.",
        "{Schools|Offices|Bakeries} {opened|closed} {an hour late|earlier than usual|as planned} {that day|nearby}.",
        "{Children|Pensioners|Students} {were seen|gathered} {on the steps|at the corner} {all afternoon|until late}.",
        "The {mayor|bishop|governor} {was informed|is expected back} {by telephone|at the weekend}.",
        "{Insurers|Lawyers|Unions} {have asked for|want to see} {the papers|all documents} {first|soon}.",
        "{Rain|Fog|Heat} {made things harder|played no part}, {people on the spot said|as far as we know}.",
        "{Several|Many} {roads|paths} {were busy|had to be swept} {afterwards|the next morning}.",
        "{An inquiry|A review} {will follow|is under way|was not thought necessary}.",
        "{Local historians|Archivists} {recall|have found notes on} {a year much like this|worse days}.",
        "The {story|matter} will {come up|be discussed} again {at the next meeting|after the holidays}.",
    ),
    "agency": ("{place_1} {Relief|Rescue|Water|Heritage} {Aid|Trust|Board}", "{company}"),
    "crowd": ("{3-98},{100-999}", "{110-990}"),
}

_SPEAKER = Fact(
    "{person}",
    (
        "{value}, {speaking for|spokesperson of} the {authorities|organisers}, {asked for patience|thanked everyone}.",
        '"We {did what we could|are satisfied|learned a lot}," said {value}, {the person in charge|who led the work}.',
        "{Questions|Enquiries} were {answered|taken} by {value}.",
    ),
    (
        "Who {spoke for|represented} the {authorities|organisers} in the report {on|about} {name}?",
        "{Which person|Who} {answered questions about|was in charge during} {name}?",
    ),
)
_DAY = Fact(
    "{day}",
    (
        "It {happened|took place|began} on {value}.",
        "On {value} {everything changed|it was finally time}.",
        "{The date|The day} was {value}, not {other} as {some had written|first announced}.",
    ),
    (
        "{When|On which day} did {name} {happen|take place|begin}?",
        "What is the {date|day} {given|reported} for {name}?",
    ),
)
_HELPER = Fact(
    "{agency}",
    (
        "{value} {sent|provided} {staff|equipment|two teams}.",
        "{Help|Support} {came|arrived} from {value} {within hours|early on}.",
        "{The costs|All costs} are {shared|carried} by {value}.",
    ),
    (
        "Which organisation {helped with|supported|was involved in} {name}?",
        "Who {sent help|gave support} in the case of {name}, {according to|as stated in} the report?",
    ),
)
_COST = Fact(
    "{2-89}.{1-9} million crowns",
    (
        "The {bill|total cost} is {put at|estimated at} {value}.",
        "{Accountants|Experts} {reckon with|speak of} {value}.",
        "{Instead of|Not} {other}, as {feared|planned}, the {final sum|price} was {value}.",
    ),
    ("How much did {name} cost?", "What {sum|amount} is {named|reported} as the cost of {name}?"),
)
_SITE = Fact(
    "{street}",
    (
        "The {centre of events|main scene} was {value}.",
        "{Police|Stewards} {closed|cordoned off} {value} {for hours|until evening}.",
        "Most of it {could be seen|took place} {on|around} {value}.",
    ),
    (
        "Which street was at the centre of {name}?",
        "What street {is mentioned|was closed} in the report {on|about} {name}?",
    ),
)


def _people(verb: str, noun: str) -> Fact:
    return Fact(
        "{crowd} people",
        (
            f"{{Altogether|In all|About}} {{value}} {verb}.",
            f"{{The number of those who|According to counts, those who}} {verb}: {{value}}.",
            f"{{First reports had said fewer, but it was|It was}} {{value}} who {verb}.",
        ),
        (
            f"{{In|According to}} the report on {{name}}, how many people {verb}?",
            f"{{What|Which}} number of {noun} {{is given|is reported}} for {{name}}?",
        ),
    )


_COMMON = {"speaker": _SPEAKER, "day": _DAY, "helper": _HELPER, "cost": _COST, "site": _SITE}

STORIES = (
    Story(
        "Floods",
        "the {place} flood",
        (
            "{name} {has left its marks|keeps the county busy}.",
            "{Water everywhere|Wet cellars}: {name} {is over|recedes}.",
        ),
        _COMMON
        | {
            "evacuated": _people("had to leave their homes", "evacuated people"),
            "level": Fact(
                "{2-11}.{10-99} metres",
                (
                    "The river {rose to|peaked at|reached} {value}.",
                    "{Gauges|Markers} {showed|read} {value} at the {peak|worst}.",
                ),
                (
                    "How high did the {water|river} {rise|stand} during {name}?",
                    "What was the {peak|highest} level of {name}?",
                ),
            ),
        },
    ),
    Story(
        "Festivals",
        "the {place} {Music|Lantern|Film|Kite|Theatre} Days",
        ("{name} {are over|have closed their gates}.", "{Crowded streets|Full houses} marked {name}."),
        _COMMON
        | {
            "visitors": _people("bought a ticket", "ticket buyers"),
            "prize": Fact(
                "{person}",
                ("The {main prize|first prize} went to {value}.", "{The jury|The audience} {chose|voted for} {value}."),
                (
                    "Who {won|received} the main prize at {name}?",
                    "To whom did the {jury|audience} of {name} give the prize?",
                ),
            ),
        },
    ),
    Story(
        "Strikes",
        "the strike at {company}",
        ("{name} {enters a new week|has ended}.", "{Empty halls|Silent machines}: {name} {goes on|was felt}."),
        _COMMON
        | {
            "strikers": _people("walked out", "strikers"),
            "rise": Fact(
                "{2-14}.{1-9} percent",
                (
                    "The union {demanded|wanted} {value} {more pay|more}.",
                    "{At issue is|The dispute was about} a rise of {value}.",
                ),
                (
                    "What pay rise did the union {want|demand} in {name}?",
                    "By {how much|what rate} should pay rise in {name}?",
                ),
            ),
        },
    ),
    Story(
        "Openings",
        "the new {library|bridge|swimming pool|tram line|market hall} of {place}",
        ("{name} {is open|has been opened}.", "{After long works|At last}, {name} {was handed over|can be used}."),
        _COMMON
        | {
            "guests": _people("came to the opening", "guests"),
            "architect": Fact(
                "{person}",
                (
                    "It was {designed|drawn} by {value}.",
                    "{The architect|Its architect}, {value}, {was present|attended}.",
                ),
                ("Who designed {name}?", "{Which architect|Who} {drew the plans for|is the architect of} {name}?"),
            ),
        },
    ),
    Story(
        "Finds",
        "the {coin|bone|mosaic|ship|manuscript} find of {place}",
        ("{name} {draws experts|is a sensation}.", "{Specialists|Scholars} are {puzzled|delighted} by {name}."),
        _COMMON
        | {
            "viewers": _people("queued to see it", "onlookers"),
            "age": Fact(
                "{310-4900} years",
                ("Its age is {given as|put at} {value}.", "{Dating|The laboratory} {gave|found} an age of {value}."),
                ("How old is {name}{, by the report|}?", "What age is {given|reported} for {name}?"),
            ),
            "depth": Fact(
                "{1-28}.{1-9} metres",
                ("It {lay|was} {value} {deep|under the ground}.", "{Diggers|Workers} came upon it at {value}."),
                ("At {what|which} depth was {name} made?", "How deep {in|under} the ground was {name}?"),
            ),
        },
    ),
)


def make_topic(seed: str) -> Topic:
    """Reports of events of one kind."""
    draw = Draw(seed, GRAMMAR)
    return tell_stories(draw, draw.pick(STORIES), _write)


def _write(draw: Draw, sentences: list[str]) -> str:
    """A report: a date line perhaps, and paragraphs."""
    dateline = draw.compose(draw.pick(("", "", "{surname} news service - ", "Local news. ", "({time}) ")))
    every = draw.number(2, 6)
    paragraphs = [" ".join(sentences[start : start + every]) for start in range(0, len(sentences), every)]
    return dateline + draw.pick(("\n\n", "\n", " ")).join(paragraphs)
