"""Training domain: manuals with specifications and numbered steps."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvrag.qa.generated.drafting import Draft, Draw, Fact, Grammar, sentence_case, to_topic
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "JOBS", "STEPS", "Job", "make_topic"]


@dataclass(frozen=True)
class Job:
    """Devices of one kind.

    Attributes:
        device: what they are called.
        tasks: what the steps are for.
        specifications: slots of the value by label.
    """

    device: str
    tasks: tuple[str, ...]
    specifications: Mapping[str, str]


GRAMMAR: Grammar = WORDS | {
    "tool_size": ("{2-12} mm hex key", "{8-32} mm spanner", "T{6-40} screwdriver", "{3-9} mm flat blade"),
    "agent": ("{citric acid|soapy water|vinegar|alcohol|machine oil|silicone grease|distilled water|soda solution}",),
    "part": (
        *(
            "front cover",
            "side panel",
            "water tank",
            "drain plug",
            "air filter",
            "drive belt",
            "fan guard",
            "bottom tray",
        ),
        *("handle", "main valve", "control board", "nozzle", "brush head", "grinding disc", "lid", "rear axle"),
    ),
    "lamp": (
        "{red|green|amber|blue|white} lamp {blinks|goes out|stays on}",
        "{short|long|double} {beep|tone} {sounds|ends}",
    ),
    "warning": (
        "{Never|Do not} {open|move|cover} the {part} {while it runs|by force|with wet hands}.",
        "{Keep|Store} {children|loose clothing|tools} away from the {part}.",
        "{Wear|Use} {gloves|goggles} {at all times|near hot parts|here}.",
        "{Damage|Faults} {by misuse|through other agents} will not be covered.",
        "{Illustrations|Drawings} may {differ|vary} from {your model|the real product}.",
        "{Read|Keep} this {leaflet|booklet} {carefully|for later}.",
        "{Unplug|Switch off} the {appliance|device} {first|beforehand}.",
    ),
    "idle": (
        "{Remove|Put back|Wipe|Inspect|Loosen|Close} the {part}.",
        "{Dry|Rinse|Check} the {part} {thoroughly|with a cloth|once more}.",
        "{Switch the device off|Unplug the device|Let it rest} {and wait|for a moment|before you go on}.",
    ),
}

_HOUSE = {
    "rated power": "{180-2900} W",
    "weight": "{1-48}.{1-9} kg",
    "noise level": "{32-89} dB",
    "warranty": "{13-95} months",
    "cable length": "{1-9}.{1-9} m",
    "fuse": "{2-32} A",
    "housing": "{material}",
    "ambient temperature": "{2-9} to {28-55} degrees",
    "order number of the filter": "{code}",
}
_WHEELS = {
    "tyre pressure": "{1-9}.{1-9} bar",
    "turning circle": "{2-14}.{1-9} m",
    "battery capacity": "{4-98} Ah",
    "top speed": "{6-48} km/h",
    "maximum load": "{60-980} kg",
    "charging time": "{2-14} hours",
    "frame": "{material}",
    "charger type": "{code}",
    "warranty": "{13-95} months",
}
JOBS = (
    Job("coffee grinder", ("cleaning", "first use", "changing the disc"), _HOUSE),
    Job("vacuum cleaner", ("emptying", "changing the filter", "freeing the brush"), _HOUSE),
    Job("dehumidifier", ("setting up", "descaling", "winter storage"), _HOUSE),
    Job("sewing machine", ("oiling", "changing the needle plate", "transport"), _HOUSE),
    Job("pump", ("priming", "venting", "winter storage"), _HOUSE),
    Job("cargo bike", ("charging", "adjusting the brake", "changing a wheel"), _WHEELS),
    Job("wheelchair", ("folding", "charging", "adjusting the seat"), _WHEELS),
    Job("floor scrubber", ("daily care", "changing the blade", "charging"), _WHEELS),
)

STEPS: Mapping[str, Fact] = {
    "torque": Fact(
        "{2-98} Nm",
        (
            "{Tighten|Fasten} the {bolts|screws} {to|with} {value}.",
            "{Set the torque wrench|Set the driver} to {value}.",
        ),
        (
            "With what torque are {bolts|screws} tightened when {task} on {name}?",
            "What torque is {given|required} for {task} of {name}?",
        ),
    ),
    "volume": Fact(
        "{20-980} ml of {agent}",
        ("{Pour in|Add|Fill in} {value}.", "{Now|Then} {use|take} {value}{, not more| and stir|}."),
        (
            "What is {poured in|added} during {task} of {name}?",
            "{What|Which liquid, and how much of it,} does {task} of {name} take?",
        ),
    ),
    "wait": Fact(
        "{2-59} minutes",
        ("{Wait|Let it stand} for {value}.", "{Leave everything alone|Let it cool down} for {value}{.| at least.}"),
        (
            "How long does one wait {during|in the course of} {task} of {name}?",
            "What waiting time is {given|prescribed} for {task} of {name}?",
        ),
    ),
    "tool": Fact(
        "{tool_size}",
        ("{Use|Take} the {value} {for the screws|to loosen the cover}.", "{Loosen|Undo} the cover with the {value}."),
        (
            "Which tool is {needed|used} for {task} of {name}?",
            "What {tool|implement} does one take for {task} of {name}?",
        ),
    ),
    "signal": Fact(
        "{lamp}",
        ("{Continue|Press start} {when|once} the {value}.", "{Wait until|It is done when} the {value}."),
        (
            "What {signals|shows} that one may {continue|go on} with {task} of {name}?",
            "What happens at the end of {task} of {name}, {as a sign|as a signal}?",
        ),
    ),
}
_SPECIFICATION = (
    "What is the {label} of {name}?",
    "What {label} does the manual {give|state|list} for {name}?",
    "{Give|State} the {label} of {name}.",
    "{Which|What} {label} {is specified|do the specifications name} for {name}?",
)


def make_topic(seed: str) -> Topic:
    """Manuals of devices of one kind."""
    draw = Draw(seed, GRAMMAR)
    job = draw.pick(JOBS)
    return to_topic(f"Manuals: {job.device}", [_passage(draw, job) for _ in range(draw.number(8, 12))])


def _passage(draw: Draw, job: Job) -> Draft:
    name = draw.name("{brand} {letter}{10-990} " + job.device)
    sections = [
        [draw.compose(draw.pick(("{name}", "Manual: {name}", "# {name}", "{name}, operating instructions")), name=name)]
    ]
    asked: list[tuple[str, str]] = []
    if draw.random.random() < 0.7:
        labels = draw.some(job.specifications, 3, 7)
        values = {label: draw.value(label, job.specifications[label]) for label in labels}
        form = draw.pick(("{}: {}", "- {}: {}", "{} = {}"))
        sections.append(["Specifications", *(form.format(sentence_case(k), v) for k, v in values.items())])
        asked += [(_about(draw, draw.pick(_SPECIFICATION), name, label=k), v) for k, v in values.items()]
    for task in draw.some(job.tasks, 1 if asked else 2, 3):
        lines, questions = _steps(draw, name, task)
        sections.append(lines)
        asked += questions
    for text in draw.fill(draw.pick((0, 10, 30, 60)), "warning"):
        draw.pick(sections[1:]).append(text)
    return Draft("\n\n".join("\n".join(lines) for lines in sections), draw.some(asked, 2, 4))


def _steps(draw: Draw, name: str, task: str) -> tuple[list[str], list[tuple[str, str]]]:
    lines: list[str] = []
    asked: list[tuple[str, str]] = []
    for fact in draw.some(STEPS.values(), 2, 4):
        value = draw.value(task + fact.value, fact.value)
        lines.append(sentence_case(draw.compose(draw.pick(fact.says), value=value)))
        asked.append((_about(draw, draw.pick(fact.asks), name, task=task), value))
    for text in draw.fill(draw.pick((0, 6, 20, 40)), "idle"):
        lines.insert(draw.number(0, len(lines)), text)
    form = draw.pick(("{}. {}", "{}) {}", "Step {}: {}"))
    head = sentence_case(draw.pick(("{}", "{}:", "## {}")).format(sentence_case(task)))
    return [head, *(form.format(number, line) for number, line in enumerate(lines, 1))], asked


def _about(draw: Draw, ask: str, name: str, **known: str) -> str:
    return sentence_case(draw.compose(ask, name=name, **known))
