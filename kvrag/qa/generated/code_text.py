"""How the parts of generated source and configuration files are written down."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CONFIGURATIONS", "LANGUAGES", "Function", "Language"]

_Sections = Sequence[tuple[str, Mapping[str, str]]]


@dataclass(frozen=True)
class Function:
    """What a function is called, takes, returns for empty input and raises; `notes` go into its comment."""

    name: str
    first: str
    parameter: str
    default: str
    returns: str
    error: str
    notes: Sequence[str]


@dataclass(frozen=True)
class Language:
    """A programming language: how it spells names, and writes functions and constants."""

    spell: Callable[[str], str]
    function: Callable[[Function], str]
    constant: Callable[[str, str], str]


def _snake(name: str) -> str:
    return name


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _python(f: Function) -> str:
    doc = "\n    ".join(f.notes) or "Undocumented."
    return (
        f'def {f.name}({f.first}, {f.parameter}={f.default}):\n    """{doc}"""\n'
        f"    if not {f.first}:\n        return {f.returns}\n"
        f"    if len({f.first}) < {f.parameter}:\n        raise {f.error}({f.first})\n"
        f"    return [part for part in {f.first} if part.size > {f.parameter}]"
    )


def _javascript(f: Function) -> str:
    doc = "".join(f" * {note}\n" for note in f.notes)
    return (
        f"/**\n{doc} * @param {f.first}\n */\nexport function {f.name}({f.first}, {f.parameter} = {f.default}) {{\n"
        f"  if ({f.first}.length === 0) return {f.returns};\n"
        f"  if ({f.first}.length < {f.parameter}) throw new {f.error}();\n"
        f"  return {f.first}.slice({f.parameter});\n}}"
    )


def _go(f: Function) -> str:
    doc = "".join(f"// {note}\n" for note in f.notes)
    return (
        f"{doc}func {f.name}({f.first} []Item, {f.parameter} *float64) (float64, error) {{\n"
        f"\tif {f.parameter} == nil {{\n\t\t{f.parameter} = ref({f.default})\n\t}}\n"
        f"\tif len({f.first}) == 0 {{\n\t\treturn {f.returns}, nil\n\t}}\n"
        f"\tif total({f.first}) > *{f.parameter} {{\n\t\treturn 0, Err{f.error}\n\t}}\n"
        f"\treturn total({f.first}), nil\n}}"
    )


def _rust(f: Function) -> str:
    doc = "".join(f"/// {note}\n" for note in f.notes)
    return (
        f"{doc}pub fn {f.name}({f.first}: &[f64], {f.parameter}: Option<f64>) -> Result<f64, Error> {{\n"
        f"    let {f.parameter} = {f.parameter}.unwrap_or({f.default} as f64);\n"
        f"    if {f.first}.is_empty() {{\n        return Ok({f.returns} as f64);\n    }}\n"
        f"    {f.first}.iter().copied().find(|x| *x > {f.parameter}).ok_or(Error::{f.error})\n}}"
    )


def _shell(f: Function) -> str:
    doc = "".join(f"# {note}\n" for note in f.notes)
    return (
        f'{doc}{f.name}() {{\n  local {f.first}="$1" {f.parameter}="${{2:-{f.default}}}"\n'
        f'  [ -z "${f.first}" ] && echo {f.returns} && return\n'
        f'  [ "${{#{f.first}}}" -lt "${f.parameter}" ] && fail {f.error}\n'
        f'  cut -c "${f.parameter}-" <<< "${f.first}"\n}}'
    )


LANGUAGES: Mapping[str, Language] = {
    "python": Language(_snake, _python, lambda name, value: f"{name} = {value}"),
    "javascript": Language(_camel, _javascript, lambda name, value: f"export const {name} = {value};"),
    "go": Language(_pascal, _go, lambda name, value: f"const {name} = {value}"),
    "rust": Language(_snake, _rust, lambda name, value: f"pub const {name}: f64 = {value} as f64;"),
    "shell": Language(_snake, _shell, lambda name, value: f"readonly {name}={value}"),
}


def _ini(sections: _Sections) -> str:
    return "\n\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items())]) for name, values in sections
    )


def _yaml(sections: _Sections) -> str:
    return "\n".join(
        "\n".join([f"{name}:", *(f"  {key}: {value}" for key, value in values.items())]) for name, values in sections
    )


def _json(sections: _Sections) -> str:
    blocks = (
        f'  "{name}": {{\n' + ",\n".join(f'    "{key}": "{value}"' for key, value in values.items()) + "\n  }"
        for name, values in sections
    )
    return "{\n" + ",\n".join(blocks) + "\n}"


def _nested(sections: _Sections) -> str:
    return "\n".join(
        f"{name} {{\n" + "".join(f"    {key} {value};\n" for key, value in values.items()) + "}"
        for name, values in sections
    )


CONFIGURATIONS: Mapping[str, Callable[[_Sections], str]] = {
    "ini": _ini,
    "yaml": _yaml,
    "json": _json,
    "nested": _nested,
}
