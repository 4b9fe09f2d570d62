"""The remote of a store: refusing what is none, and waiting for uploads."""

from typing import TYPE_CHECKING

from rich.console import Console

from kvrag.cli.terminal import warn

if TYPE_CHECKING:
    from kvrag.store import PacketStore

__all__ = ["check_remote", "upload"]


def check_remote(remote: str | None) -> None:
    """Refuse a wrong URL before anything is made or loaded.

    Raises:
        SettingsError: there is no such kind of remote.
        StoreError: the extra is missing.
    """
    if remote is not None:
        from kvrag.store.objects import Objects

        Objects(remote, None, timeout=1.0)  # connects to nothing


def upload(packets: "PacketStore") -> int:
    """Upload what the remote of a store does not have yet; the number of packets that are left."""
    with Console(stderr=True).status("uploading packets"):
        left = packets.flush()
    if left:
        warn(f"{left} packets are not on the remote yet; `kvrag store push` uploads them")
    return left
