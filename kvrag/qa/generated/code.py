"""Training domain: source files with functions and constants, and configuration files."""

from kvrag.qa.generated.code_text import CONFIGURATIONS, LANGUAGES, Function
from kvrag.qa.generated.drafting import Draft, Draw, Grammar, sentence_case, to_topic
from kvrag.qa.generated.words import WORDS
from kvrag.qa.topics import Topic

__all__ = ["ASKS", "GRAMMAR", "make_topic"]

GRAMMAR: Grammar = WORDS | {
    "verb": (
        *("load", "parse", "merge", "split", "render", "fetch", "encode", "decode", "resize", "filter", "rank", "sort"),
        *("flush", "probe", "retry", "sync", "trim", "scan", "build", "patch", "index", "queue", "route", "pack"),
    ),
    "noun": (
        *("invoice", "basket", "ticket", "packet", "frame", "cursor", "ledger", "token", "folder", "payload", "marker"),
        *(
            "widget",
            "bucket",
            "channel",
            "session",
            "vector",
            "header",
            "digest",
            "report",
            "segment",
            "schema",
            "lease",
        ),
        *("voucher", "beacon", "shard", "palette", "route", "window", "recipe", "sensor", "journal", "locale"),
    ),
    "part": ("rows", "tree", "batch", "group", "edges", "fields", "blob", "list", "page", "graph", "table", "cache"),
    "parameter": (
        *("limit", "timeout", "retries", "offset", "depth", "width", "step", "budget", "window", "weight", "margin"),
        *("threshold", "capacity", "priority", "interval", "ratio", "quota", "backlog"),
    ),
    "first_parameter": ("source", "items", "path", "stream", "record", "handle", "query", "buffer", "data"),
    "error": ("{error_1}{error_2}",),
    "error_1": (
        "Broken",
        "Missing",
        "Stale",
        "Empty",
        "Locked",
        "Unknown",
        "Oversized",
        "Duplicate",
        "Expired",
        "Foreign",
    ),
    "error_2": ("Input", "Handle", "Record", "Version", "Owner", "Range", "Format", "Lease", "Checksum", "Quota"),
    "purpose": (
        "{Prepares|Collects|Reorders|Cleans up} the {noun} {before storage|for display|for the next run}.",
        "{Used by|Called from} the {noun} {service|worker|view}{ only| and in tests|}.",
        "{Works in place|Makes a copy first|Does not touch the disk}.",
        "{Safe to call twice|Not thread-safe|Cheap for small inputs}.",
        "{See|Compare} the {noun} {module|docs} for the {background|reasons}.",
        "{Order|Case} of the {part} {is kept|does not matter|is lost}.",
    ),
    "number": ("{2-999}", "{2-64}", "{1000-9999}", "0.{01-99}", "{2-19}.{1-9}"),
    "key": (
        "{noun}_{parameter}",
        "{parameter}",
        "{parameter}_{ms|bytes|rows|days}",
        "max_{part}",
        "{verb}_{interval|delay}",
    ),
    "setting": ("{number}", "{number}", "{2-90}{s|ms|m}", "{4-512}{MB|KiB}", "{brand}"),
    "section": ("{noun}-{part}", "{verb}-{noun}", "{noun}.{part}"),
}

ASKS = {
    "default": (
        "What is the default {value of|for} {parameter} in {name}?",
        "If {parameter} is not {given|passed} to {name}, what value {is used|does it have}?",
        "Which {default|value} does the parameter {parameter} of {name} {have|take}{ when omitted| by default}?",
    ),
    "returns": (
        "What does {name} return {when|if} the input is empty?",
        "{Which value|What} {is returned by|comes back from} {name} for {empty input|an empty input}?",
        "Name the {return value|result} of {name} for an empty input.",
    ),
    "error": (
        "{Which|What} error does {name} raise?",
        "What is the name of the {error|exception} {raised|signalled} {by|in} {name}?",
        "{When|If} a call of {name} fails, {with which|with what} error?",
    ),
    "constant": (
        "What is the value of {name}?",
        "To {what|which value} is {name} set?",
        "{Which|What} value does the constant {name} {hold|have}?",
        "{Look up|Give} the value of {name}.",
    ),
    "setting": (
        "What is {key} in the section {name}?",
        "{Which|What} value {is set for|has} {key} {under|in} {name}?",
        "In the configuration of {name}, what is {key} {set to|given as}?",
        "{Give|Read} the {setting|value} of {key} for {name}.",
    ),
}


def make_topic(seed: str) -> Topic:
    """Files of one code base, in up to three languages, or its configuration files."""
    draw = Draw(seed, GRAMMAR)
    languages, configurations = draw.some(LANGUAGES, 1, 3), draw.some(CONFIGURATIONS, 1, 2)
    share = draw.pick((0.0, 0.2, 0.5, 1.0))
    drafts = []
    for _ in range(draw.number(8, 12)):
        settings = draw.random.random() < share
        drafts.append(_settings(draw, draw.pick(configurations)) if settings else _source(draw, draw.pick(languages)))
    return to_topic("Code", drafts)


def _source(draw: Draw, language: str) -> Draft:
    write = LANGUAGES[language]
    parts: list[str] = []
    asked: list[tuple[str, str]] = []
    length = draw.pick((35, 35, 60, 100, 180))
    while len(" ".join(parts).split()) < length:
        if draw.random.random() < 0.3:
            name = draw.name("{noun}_{part}_{parameter}").upper()
            value = draw.value("constant", "{number}")
            parts.append(write.constant(name, value))
            asked.append((_ask(draw, "constant", name=name), value))
            continue
        base = draw.name("{verb}_{noun}_{part}")
        parameter = draw.compose("{parameter}")
        function = Function(
            write.spell(base),
            draw.compose("{first_parameter}"),
            write.spell(parameter),
            draw.value("default", "{number}"),
            draw.value("returns", "{number}"),
            draw.value("error", "{error}"),
            draw.fill(draw.pick((0, 6, 12, 30)), "purpose"),
        )
        parts.append(write.function(function))
        asked.append((_ask(draw, "default", name=function.name, parameter=function.parameter), function.default))
        asked.append((_ask(draw, "returns", name=function.name), function.returns))
        asked.append((_ask(draw, "error", name=function.name), function.error))
    return Draft("\n\n".join(parts), draw.some(asked, 2, 4))


def _settings(draw: Draw, configuration: str) -> Draft:
    sections: list[tuple[str, dict[str, str]]] = []
    asked: list[tuple[str, str]] = []
    for _ in range(draw.pick((2, 3, 4, 6))):
        name = draw.name("{section}")
        values: dict[str, str] = {}
        for _ in range(draw.number(4, 8)):
            values.setdefault(draw.compose("{key}"), draw.value("setting", "{setting}"))
        sections.append((name, values))
        asked += [(_ask(draw, "setting", name=name, key=key), value) for key, value in values.items()]
    return Draft(CONFIGURATIONS[configuration](sections), draw.some(asked, 2, 4))


def _ask(draw: Draw, kind: str, **known: str) -> str:
    return sentence_case(draw.compose(draw.pick(ASKS[kind]), **known))
