"""Training domain: chats, tickets, calls and minutes in which a decision, a date or a name is said."""

from kvrag.qa.generated.drafting import Draw, Fact, Grammar
from kvrag.qa.generated.stories import Story, tell_stories
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["GRAMMAR", "STORIES", "make_topic"]

GRAMMAR: Grammar = WORDS | {
    "filler": (
        "{Sorry|Excuse me}, {I was on mute|the line broke up}. {Go on|Where were we}?",
        "{Fine|Good|Right}, {one thing at a time|let me write that down|next point}.",
        "{Does anybody|Would anyone} {object|mind|want to add something}? {No? Good.|Then it stays like that.}",
        "{I|We} {talked|argued} about that {yesterday|for half an hour}, {it took a while|no need to repeat it}.",
        "{Please|Could you} {send|forward} me the {minutes|attachment|link} {afterwards|when you can}.",
        "{That|This} {sounds|seems} {reasonable|tight, but possible|familiar}.",
        "{My|Our} {calendar|list} is {rather|a bit} full, {but I will manage|as always}.",
        "{Hold on|One second}, {the door|somebody is calling|my screen froze}.",
        "{Thanks|Thank you} for {waiting|the reminder|checking|being patient}.",
        "{Last time|The other day} we {forgot|skipped} the {summary|coffee}, {let us not do that again|remember}?",
        "{I am|We are} {happy|fine} with {that|either}.",
        "{Has anybody|Has anyone} {read|seen|opened} my {message|note|list}? {It can wait.|No hurry.}",
        "{Let me|I will} {share|find} the {file|drawing|photo}, {a moment|it is somewhere here}.",
        "{The coffee machine|The lift|The heating} is {broken|being fixed} {again|since lunch}, {by the way|I hear}.",
        "{Perfect|Lovely|Great}, {that was quick|one worry less|I will tell the others}.",
        "{I must leave|Some of us have to go} {soon|in a while}, {shall we hurry|keep it short, please}?",
        "{Who|Somebody} {is typing|has a dog|is eating} there, {I can hear it|never mind}.",
        "{We|You} {said so|had that} in the {last|first} {round|mail}, {I think|if I remember well}.",
        "{Holidays|The trade fair|The weather} {may|might} {get in the way|delay us}, {we will see|as every year}.",
        "{Is it warm|Is it loud} in your {office|room} too? {Never mind.|Anyway.}",
    ),
    "thing": (
        *("boiler", "dishwasher", "router", "printer", "lawnmower", "projector", "freezer", "bicycle", "tumble dryer"),
        *("thermostat", "doorbell", "washing machine", "scanner", "keyboard", "hearing aid", "piano", "heat pump"),
    ),
    "cause": (
        *("a loose cable", "a blown fuse", "a blocked filter", "worn bearings", "a cracked seal", "old firmware"),
        *("a wrong setting", "moisture in the plug", "a flat battery", "a bent pin", "dust on the sensor"),
        *("a missing screw", "a short circuit", "a swollen capacitor", "mice in the casing", "a broken spring"),
    ),
    "venue": ("{the canteen|the back room|the hall|the terrace} of {company}", "room {letter}{100-499}", "{street}"),
}

_PERSON = Fact(
    "{person}",
    (
        "{So|Then} {value} takes {this|it} over, {agreed|as discussed}.",
        "{value} {has volunteered|will look after this|is responsible from now on}.",
        "{I cannot do it myself, but|Good news:} {value} {can|has the time}.",
        "It {was to be|was going to be} {other}, but now it is {value}.",
    ),
    (
        "Who {takes over|looks after|is responsible for} {name}?",
        "{Which person|Who} {volunteered for|was given} {name} in the conversation?",
    ),
)
_DEADLINE = Fact(
    "{day}",
    (
        "{We need it|It has to be finished} by {value}, {no later|at the latest}.",
        "{The deadline|The due date} is {value}.",
        "I {had|wrote down} {other} {in mind|at first}, but {value} is {what counts|settled} now.",
        "{Let us say|I write down} {value} as the {last day|deadline}.",
    ),
    (
        "{By when|By what date} {must|should} {name} be {finished|done}?",
        "{What|Which} {deadline|due date} was {agreed|set|fixed} for {name}?",
    ),
)
_MEETING = Fact(
    "{weekday} at {time}",
    (
        "{We meet again|The next meeting is} on {value}.",
        "{Can you all do|How about} {value}? {Good.|Fine, noted.}",
        "{value} {works for me|suits everyone}, {see you then|let us meet then}.",
        "{other} is {taken|impossible}, so {we meet|it will be} {value}.",
    ),
    (
        "When is the next {meeting|appointment} {about|on} {name}?",
        "{What|Which} time {did they choose|was chosen} for the next talk about {name}?",
    ),
)
_PLACE = Fact(
    "{venue}",
    (
        "{We do it|It will be} {in|at} {value}.",
        "{I have booked|They gave us} {value}.",
        "{other} {would have been nicer|is too small}, but {we got|we take} {value}.",
    ),
    ("Where {do people meet for|is the meeting on} {name}?", "{What|Which} {place|venue} was booked for {name}?"),
)
_MONEY = Fact(
    "{110-9900} crowns",
    (
        "{The budget|The offer|The limit} is {value}.",
        "{We can spend|They ask for|It comes to} {value}.",
        "{other} was {the old figure|last year's price}; {now it is|today we talk about} {value}.",
    ),
    ("How much money is {planned|named} for {name}?", "{What|Which} {sum|amount} was {mentioned|agreed} for {name}?"),
)
_FIRM = Fact(
    "{company}",
    (
        "{We order from|The job goes to|I signed with} {value}.",
        "{value} {made the best offer|gets the order|will deliver}.",
        "{Forget|No longer} {other}: {it will be|we take} {value}.",
    ),
    ("Which {firm|company} was chosen for {name}?", "{To whom|To which company} does the order for {name} go?"),
)
_CAUSE = Fact(
    "{cause}",
    (
        "{The technician|Our engineer} found {value}.",
        "{It turned out to be|The reason was} {value}.",
        "{First we thought of|It was not} {other}, {but it was|it was simply} {value}.",
    ),
    (
        "What {caused the trouble|was the reason of the trouble} with {name}?",
        "What {did the expert find|was found} in {name}?",
    ),
)
_PART = Fact(
    "{code}",
    (
        "{The part number|The spare part} is {value}.",
        "{You need|Please order} part {value}.",
        "{Write down|Note} {value} for the part.",
    ),
    ("What is the part number {given|mentioned} in {name}?", "Which part {is needed|has to be ordered} for {name}?"),
)

STORIES = (
    Story(
        "Projects",
        "project {brand}",
        (
            "{Hello everyone|Morning all}, {today it is about|let us talk about} {name}.",
            "{name} is {first|next} on the list.",
        ),
        {"owner": _PERSON, "due": _DEADLINE, "next": _MEETING, "place": _PLACE, "money": _MONEY, "firm": _FIRM},
    ),
    Story(
        "Repairs",
        "ticket {1000-9999} ({thing})",
        ("{This is about|I am calling about} {name}.", "{name}: {the customer is on the line|new message|reopened}."),
        {"technician": _PERSON, "visit": _MEETING, "cause": _CAUSE, "part": _PART, "money": _MONEY, "due": _DEADLINE},
    ),
    Story(
        "Parties",
        "{first} {surname}'s {farewell|birthday party|wedding|jubilee|moving day}",
        ("{Who is in for|Now to} {name}?", "{We still have to plan|There is} {name}, {remember|everyone}."),
        {"cook": _PERSON, "place": _PLACE, "start": _MEETING, "money": _MONEY, "firm": _FIRM},
    ),
    Story(
        "Renovations",
        "the {kitchen|roof|cellar|garden|staircase|facade} at {2-99} {street}",
        ("{Let us go through|A word on} {name}.", "{There is news on|I was at} {name} {today|this morning}."),
        {"builder": _FIRM, "due": _DEADLINE, "lead": _PERSON, "money": _MONEY, "trouble": _CAUSE, "next": _MEETING},
    ),
)


def make_topic(seed: str) -> Topic:
    """Conversations on things of one kind."""
    draw = Draw(seed, GRAMMAR)
    return tell_stories(draw, draw.pick(STORIES), _write)


def _write(draw: Draw, sentences: list[str]) -> str:
    """What was said, by two or three speakers in turns, or as minutes."""
    style = draw.pick(("chat", "chat", "times", "minutes", "mail"))
    if style == "minutes":
        head = draw.compose(draw.pick(("Minutes, {date}", "Notes of the meeting", "Present: {person}, {person}")))
        return "\n".join([head, *(f"- {text}" for text in sentences)])
    speakers = [draw.compose(draw.pick(("{first}", "{first}", "{surname}"))) for _ in range(draw.pick((2, 2, 3)))]
    if style == "mail":
        head, hello, bye = (
            draw.compose(t)
            for t in ("{Re|Fwd|Subject}: {our call|as promised|short summary}", "{Hi|Dear}", "{Best|Regards}")
        )
        return f"{head}\n\n{hello} {speakers[0]},\n\n{' '.join(sentences)}\n\n{bye}, {speakers[1]}"
    form = draw.pick(("{}: {}", "<{}> {}", "{} - {}", "**{}:** {}")) if style == "chat" else "[{}] {}"
    lines, minute = [], draw.number(480, 1000)
    for number, text in enumerate(sentences):
        minute += draw.number(0, 3)
        clock = f"{minute // 60:02}:{minute % 60:02}] {speakers[number % len(speakers)]}: "
        lines.append(f"[{clock}{text}" if style == "times" else form.format(speakers[number % len(speakers)], text))
    return "\n".join(lines)
