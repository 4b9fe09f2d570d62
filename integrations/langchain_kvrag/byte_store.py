"""A packet store as LangChain's store of bytes."""

from collections.abc import Iterator, Sequence

from langchain_core.stores import BaseStore

from kvrag.errors import SettingsError
from kvrag.store import PacketStore

__all__ = ["PacketByteStore"]


class PacketByteStore(BaseStore[str, bytes]):
    """The packets of a namespace as files under names, to copy them to and from LangChain's other byte stores.

    Values are packet files, every byte of which is checked on the way in and on the way out: anything else is refused.
    Names are free; a packet that nobody named goes by its key, 64 hexadecimal digits. A name that is given to another
    packet, or deleted, takes its packet along, unless that has another name or texts lead to it; by its key a packet
    always goes. A packet that came this way is found in prompts once `PacketEngine.build` has seen its text, which
    computes nothing then. The asynchronous methods leave the event loop free.

    Args:
        store: that keeps the packets; closed by whoever opened it.
        namespace: whose packets; all others do not exist here.

    Raises:
        SettingsError: it is no packet store.
    """

    def __init__(self, store: PacketStore, *, namespace: str = "default") -> None:
        if not isinstance(store, PacketStore):
            raise SettingsError(f"expected a PacketStore, such as `engine.store`, found {store!r}")
        self._files = store.files(namespace)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The packet files, None where there is none or it is not intact."""
        return [self._files.get(key) for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Keep packet files, each durable before the next is begun.

        Raises:
            CorruptPacketError: a value is not a packet file, or not intact; those before it are kept.
            StoreError: a packet belongs to another namespace, its name is the key of another packet, or the disk is
                full; those before it are kept.
        """
        for key, value in key_value_pairs:
            self._files.put(key, value)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Forget names, and the packets that nothing else leads to; those that are not there are left out.

        Raises:
            StoreError: the store cannot be written, or a remote does not let go of a packet.
        """
        for key in keys:
            self._files.delete(key)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The names that begin with `prefix`, and the keys of packets without a name."""
        yield from self._files.names(prefix or "")
