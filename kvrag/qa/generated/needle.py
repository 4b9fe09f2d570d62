"""Evaluation set: one fact in a passage of prose that has nothing to do with it."""

from kvrag.qa.generated.drafting import Draw, Fact, Grammar
from kvrag.qa.generated.stories import Story, tell_stories
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "STORIES", "make_topic"]

GRAMMAR: Grammar = {
    "filler": (
        "{dusk} a {grave|mild|pale} {light} {crept|drifted|sank} over the {hollow}, and the {animal} fell silent.",
        "The {animal} {wandered|slept|waited} beside the {hollow}, as {patient|idle|shy} as the {hollow} itself.",
        "{elder} used to say that a {hollow} without {weather} is {like a song|like a clock} without {sound}.",
        "{dusk} the {weather} came {slowly|gently|in waves} across the {hollow}, smelling of {scent} and {scent}.",
        "{elder} carried {scent} in both pockets and hummed of {weather}.",
        "There was {scent} on the {sill}, {scent} in the {sill}, and {sound} behind the {sill}.",
        "{dusk} one could hear {sound}, then {sound}, then nothing but {weather}.",
        "The {sill} {creaked|glowed|leaned} a little, although {elder} had {mended|painted|blessed} it {dusk_2}.",
        "{elder} {counted|sorted|sang of} {scent} and {scent} until {sound} {put an end to it|answered}.",
        "Nobody {asked|knew} why the {animal} {preferred|avoided} the {hollow} {in such weather|on quiet days}.",
        "{dusk} a {sill} {was|seemed} all that {stood|remained} between the {hollow} and the {weather}.",
        "{scent} {hung|dried} from the {sill}, and {light} {pooled|gathered} under the {sill}.",
        "{Somewhere|Not far off} the {animal} {stirred|yawned}, and the {weather} {thickened|lifted}.",
        "Between {hollow} and {hollow} {ran|wound} a path of {scent} that only the {animal} {used|trusted}.",
        "{Some old|Some early|One odd} {animal} left its tracks between the {sill} and the {hollow}.",
        "{light} {lay|trembled|thinned} on everything, {even on|except on} the {sill}.",
    ),
    "dusk": ("At dusk", "Towards morning", "In the small hours", "Past midnight", "Before the thaw", "After harvest"),
    "dusk_2": ("at dusk", "before the thaw", "after harvest", "long ago", "the winter before"),
    "light": ("lantern glow", "moonshine", "twilight", "candlelight", "starlight", "gleam", "afterglow", "shimmer"),
    "hollow": ("hollow", "orchard", "heath", "millpond", "hedgerow", "glade", "meadow", "brook", "thicket", "fen"),
    "animal": ("owl", "hare", "otter", "heron", "badger", "fox", "jackdaw", "hedgehog", "newt", "barn cat", "weasel"),
    "elder": (
        "grandmother",
        "the miller",
        "the beekeeper",
        "an old fiddler",
        "the ferrywoman",
        "the sexton",
        "my aunt",
    ),
    "weather": ("drizzle", "mist", "hoarfrost", "thunder", "sleet", "warm wind", "dew", "snowfall", "haze", "fog"),
    "sound": (
        "crickets",
        "a distant flute",
        "bells",
        "dripping eaves",
        "wingbeats",
        "rustling straw",
        "murmurs",
        "an echo",
    ),
    "scent": (
        "thyme",
        "beeswax",
        "wet bark",
        "clover",
        "smoke",
        "fresh hay",
        "peppermint",
        "elderflower",
        "tar",
        "moss",
    ),
    "sill": ("windowsill", "doorstep", "trellis", "stile", "woodshed", "weathercock", "ladder", "rain barrel", "loft"),
    "spirit": ("{spirit_1}{spirit_2}",),
    "spirit_1": (
        *("Aur", "Bael", "Ciry", "Dael", "Eph", "Gael", "Hydr", "Ith", "Lyr", "Myth", "Neph", "Oph", "Phae", "Rhun"),
        *("Syl", "Thal", "Uri", "Vael", "Xan", "Zeph"),
    ),
    "spirit_2": (
        "adoc",
        "aeus",
        "anth",
        "arion",
        "elune",
        "emis",
        "enor",
        "iandre",
        "idor",
        "ilwe",
        "imar",
        "onel",
        "oth",
        "yss",
    ),
    "mood": (
        "gilded",
        "sleeping",
        "hidden",
        "seventh",
        "northern",
        "golden",
        "broken",
        "whispering",
        "crooked",
        "velvet",
    ),
    "glyph": tuple("QXZJWKVHTG"),
    "cipher": (
        "{100-999}-{glyph}{glyph}-{10-99}",
        "{glyph}{1-9}{glyph}{1-9}{glyph}{10-99}",
        "{1-9} {100-999} {100-999}",
    ),
    "charm": ("{mood} {charm_1}",),
    "charm_1": ("feather", "acorn", "pearl", "thimble", "raven", "comet", "anvil", "lotus", "harp", "walrus", "dagger"),
}


def _cipher(thing: str) -> Fact:
    return Fact(
        "{cipher}",
        (
            f"{{The secret|The hidden}} {thing} of {{name}} {{reads|happens to be}} {{value}}.",
            f"{{Remember this|Keep in mind}}: {{value}} {{opens|unlocks}} {{name}}, as its {thing}.",
            f"{{Those who know|Initiates say}} that {{value}} {{serves as|has been}} the {thing} {{for|of}} {{name}}.",
            f"{{name}} {{answers to|obeys}} the {thing} {{value}}.",
        ),
        (
            f"{{What|Which sequence}} is the {thing} {{for|of}} {{name}}?",
            f"{{Tell me|Recall}} the {thing} {{that belongs to|of}} {{name}}.",
        ),
    )


_CHARM = Fact(
    "{charm}",
    (
        "{Whoever seeks|To wake} {name} {must bring|needs} a {value}.",
        "{name} {is guarded by|bears the sign of} a {value}.",
        "{The emblem|The sign} {carved into|of} {name} {shows|is} a {value}.",
    ),
    ("Which emblem belongs to {name}?", "{With what object|By what sign} is {name} {linked|associated}?"),
)

STORIES = tuple(
    Story("Needles", f"the {{mood}} {thing} of {{spirit}}", ("{filler}",), {"needle": fact})
    for thing, fact in (
        ("vault", _cipher("passphrase")),
        ("gate", _cipher("watchword")),
        ("observatory", _cipher("star number")),
        ("music box", _cipher("winding sequence")),
        ("well", _CHARM),
        ("tomb", _CHARM),
    )
)


def make_topic(seed: str) -> Topic:
    """Eight passages of 110 to 190 words, a needle of the same kind in each."""
    draw = Draw(seed, GRAMMAR)
    return tell_stories(
        draw,
        draw.pick(STORIES),
        lambda _, sentences: " ".join(sentences),
        passages=(8, 8),
        facts=(1, 1),
        words=range(95, 160),
    )
