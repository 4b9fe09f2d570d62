"""When packets are built: before they are needed, or once they have turned out to be."""

from dataclasses import dataclass

from kvrag.errors import SettingsError

__all__ = ["BuildPolicy", "policy_from_name"]


@dataclass(frozen=True)
class BuildPolicy:
    """After how many prompts with a text its packet is built.

    Attributes:
        name: as users write it.
        uses: prompts; 0 builds every packet at once, and prompts build none.
    """

    name: str
    uses: int


def policy_from_name(name: str) -> BuildPolicy:
    """`eager`, `on-first-use`, `hot-set` (after two prompts), or `hot-set=N`.

    Raises:
        SettingsError: it is none of them.
    """
    kind, _, uses = name.partition("=")
    known = {"eager": 0, "on-first-use": 1, "hot-set": 2}
    if kind == "hot-set" and uses.isdecimal() and 0 < int(uses) < 1_000_000:
        return BuildPolicy(name, int(uses))
    if name not in known:
        raise SettingsError(
            f"expected a policy out of {', '.join(known)} or hot-set=N with a number of prompts, found {name!r}"
        )
    return BuildPolicy(name, known[name])
