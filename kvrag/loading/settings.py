"""How packets that are not in host memory get there."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kvrag.errors import SettingsError
from kvrag.loading.rates import Rates

__all__ = ["Loading", "LoadingMode", "loading_from"]

LoadingMode = Literal["auto", "load", "compute", "both"]


class Loading(BaseModel):
    """Whether packets are loaded, computed anew, or both at once.

    Attributes:
        mode: "auto" has nobody begin what the other side would finish sooner; "both" uses both sides whatever they are
            worth; "load" computes nothing, and packets that cannot be loaded are text of the prompt; "compute" loads
            nothing.
        rates: to begin with; by default a guess from the model's size, which measurements replace.
        deterministic: divide by `rates` alone, before anything begins, so that every run does the same. What one side
            has to do is not taken over by the other, however slow it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: LoadingMode = "auto"
    rates: Rates | None = None
    deterministic: bool = False


def loading_from(given: "Loading | LoadingMode | str") -> Loading:
    """Settings from a mode's name.

    Raises:
        SettingsError: there is no such mode, or a deterministic division lacks rates.
    """
    try:
        loading = given if isinstance(given, Loading) else Loading.model_validate({"mode": given})
    except ValidationError as error:
        raise SettingsError(f"expected loading out of auto, load, compute, both, found {given!r}") from error
    if loading.deterministic and loading.rates is None:
        raise SettingsError("expected rates for deterministic loading, found none; pass Loading(rates=Rates(...))")
    return loading
