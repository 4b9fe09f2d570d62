"""Evaluation set: short lives of invented persons."""

from kvrag.qa.generated.drafting import Draw, Fact, Grammar
from kvrag.qa.generated.stories import Story, tell_stories
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "STORY", "make_topic"]

GRAMMAR: Grammar = {
    "life": ("{life_1}{life_2} {family_1}{family_2}{family_3}",),
    "life_1": (
        "Aly",
        "Bris",
        "Cael",
        "Deir",
        "Eln",
        "Fior",
        "Gwen",
        "Hald",
        "Isol",
        "Jor",
        "Kaer",
        "Lio",
        "Mael",
        "Nyr",
    ),
    "life_2": ("a", "ane", "ath", "eira", "en", "eth", "ias", "ic", "ine", "is", "old", "une", "wyn", "ys"),
    "family_1": (
        "Ashgr",
        "Brysk",
        "Drav",
        "Eirl",
        "Fjorr",
        "Hyl",
        "Jorv",
        "Kyrr",
        "Lunq",
        "Myrd",
        "Nyst",
        "Pryt",
        "Skald",
    ),
    "family_2": ("a", "au", "ei", "ie", "o", "u", "y"),
    "family_3": ("drun", "fax", "gren", "holt", "kvist", "mund", "nagel", "quist", "rath", "stram", "thal", "voll"),
    "birthplace": ("{birth_1}{birth_2}",),
    "birth_1": (
        "Aeg",
        "Bjal",
        "Drom",
        "Ekhol",
        "Fael",
        "Gjor",
        "Hvas",
        "Ildr",
        "Kjel",
        "Lof",
        "Mjol",
        "Orsk",
        "Pjas",
        "Skra",
    ),
    "birth_2": ("avik", "eborg", "efjord", "egard", "estrand", "ijoki", "ilund", "oby", "odda", "osund", "uvalla"),
    "born": ("{1-28} {moon} {1871-1989}",),
    "moon": (
        *("January", "February", "March", "April", "May", "June", "July"),
        *("August", "September", "October", "November", "December"),
    ),
    "profession": (
        *("botanist", "cartographer", "violinist", "glassblower", "surgeon", "novelist", "astronomer", "sculptor"),
        *("linguist", "geologist", "choreographer", "puppeteer", "mathematician", "oceanographer", "engraver", "poet"),
        *("apothecary", "entomologist", "organist", "translator", "illustrator", "chemist", "historian", "falconer"),
    ),
    "employer": ("{employer_1} {of|at} {birthplace}",),
    "employer_1": (
        "the Royal Academy",
        "the Conservatory",
        "the Institute of Letters",
        "the Polar Museum",
        "the Hospital",
    ),
    "honour": ("the {honour_1} {honour_2}",),
    "honour_1": (
        "Aldebaran",
        "Cassiopeia",
        "Fomalhaut",
        "Hyperion",
        "Lyra",
        "Meridian",
        "Orion",
        "Perihelion",
        "Solstice",
    ),
    "honour_2": ("Medal", "Laurel", "Cross", "Fellowship", "Wreath", "Ribbon"),
    "pastime": (
        *("beekeeping", "fencing with sabres", "collecting seashells", "mountain walks", "playing the lute", "origami"),
        *("carving chess pieces", "kite flying", "growing orchids", "ice skating", "calligraphy", "repairing clocks"),
        *("stargazing", "baking rye bread", "sailing dinghies", "pressing flowers", "archery", "yodelling"),
    ),
    "work": ("{work_1} {of|without|beyond} {work_2}",),
    "work_1": (
        "Letters",
        "A Grammar",
        "Shadows",
        "The Cartography",
        "Studies",
        "Songs",
        "An Anatomy",
        "The Arithmetic",
    ),
    "work_2": (
        "Distant Rain",
        "Glass",
        "Borrowed Islands",
        "Thistles",
        "Quiet Engines",
        "Amaranth",
        "Salted Snow",
        "Tides",
    ),
    "mentor": ("Professor {family_1}{family_2}{family_3}",),
    "filler": (
        "{Childhood|Youth} was {modest|sheltered|restless}, {with many siblings|by all accounts}.",
        "{Letters|Diaries} from {those years|this period} {survive|are held} in a private archive.",
        "{Critics|Biographers} {disagree|have written at length} about the {later|middle} years.",
        "{Travel|Illness|War} {interrupted|delayed} the career {twice|for a while}.",
        "{Friends|Pupils} {praised|recalled} a {dry wit|quiet voice|generous table}.",
        "{A portrait|A bust} {hangs|stands} in the family house.",
    ),
}

STORY = Story(
    "Biographies",
    "{life}",
    (
        "{name} {is remembered as|was} {a singular figure|one of a kind}.",
        "{The life of|Little is forgotten about} {name}.",
    ),
    {
        "born": Fact(
            "{born}",
            ("{name} was born on {value}.", "{The date of birth|The birth} {is recorded as|fell on} {value}."),
            (
                "When was {name} born?",
                "{On which date|On what date} was {name} born?",
                "What is {name}'s date of birth?",
            ),
        ),
        "town": Fact(
            "{birthplace}",
            (
                "{The family|The parents} {lived in|came from} {value}.",
                "{name} {grew up|spent the first years} in {value}.",
            ),
            ("{In which town|In what town} did {name} grow up?", "Where did {name} {grow up|spend the first years}?"),
        ),
        "profession": Fact(
            "{profession}",
            (
                "{name} {chose|took up} the profession of {value}.",
                "{Training|Schooling} {led to|ended in} the work of a certified {value}.",
            ),
            ("What was {name}'s profession?", "{What|Which} profession did {name} {have|practise}?"),
        ),
        "employer": Fact(
            "{employer}",
            (
                "{For decades|From then on}, {value} was {the employer|the workplace}.",
                "{name} {was employed by|worked for} {value}.",
            ),
            ("{Who|Which institution} employed {name}?", "For whom did {name} work?", "Where was {name} employed?"),
        ),
        "honour": Fact(
            "{honour}",
            (
                "{Late in life|At forty}, {name} {received|was given} {value}.",
                "{Among the honours was|The highest award was} {value}.",
            ),
            ("{Which|What} award did {name} {receive|win}?", "What honour was {name} given?"),
        ),
        "pastime": Fact(
            "{pastime}",
            (
                "{In spare hours|On Sundays}, {name} {loved|took up} {value}.",
                "{The favourite hobby|A lifelong passion} was {value}.",
            ),
            ("What was {name}'s hobby?", "{Which|What} hobby did {name} {have|pursue}?"),
        ),
        "work": Fact(
            "{work}",
            (
                "{The best-known work|The principal work} is {value}.",
                "{name} {published|completed} {value} {to acclaim|in old age}.",
            ),
            ("{What|Which} is {name}'s best-known work?", "{What|Which} work did {name} {publish|complete}?"),
        ),
        "mentor": Fact(
            "{mentor}",
            ("{The decisive teacher|The mentor} was {value}.", "{name} {studied under|was taught by} {value}."),
            ("Who taught {name}?", "Under whom did {name} study?", "Who was {name}'s {teacher|mentor}?"),
        ),
    },
)


def make_topic(seed: str) -> Topic:
    """The lives of 16 persons, 80 to 120 words each."""
    draw = Draw(seed, GRAMMAR)
    return tell_stories(
        draw,
        STORY,
        lambda _, sentences: " ".join(sentences),
        passages=(16, 16),
        facts=(6, 8),
        words=range(28, 46),
    )
