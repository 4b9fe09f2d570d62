"""Remote object stores through obstore: opening them, and its errors and waiting times in this store's terms."""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kvrag.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "RemoteError"]

UPLOAD_S = 300.0
CHUNK = 1 << 20  # bytes asked for at once while an object is read


class RemoteError(Exception):
    """A remote did not do what it was asked to; `reason` is timeout, connection, server, denied or other."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Objects:
    """The objects of a bucket or folder, by path.

    Args:
        remote: a URL such as `s3://bucket/prefix`, or a store object of obstore, whose own waiting times then count.
        options: for obstore, such as `endpoint` and `region`; credentials come from the environment by default.
        timeout: seconds that a request may take, or all attempts at it before the last; uploads have 300.

    Raises:
        SettingsError: there is no such kind of store, an option is unknown, or the timeout is not positive.
        StoreError: obstore is not installed.
    """

    def __init__(self, remote: "str | ObjectStore", options: Mapping[str, Any] | None, timeout: float):
        if not timeout > 0:
            raise SettingsError(f"expected a remote_timeout above 0 seconds, found {timeout}")
        try:
            import obstore
        except ImportError as error:
            raise StoreError("a remote needs obstore; run: pip install 'kvrag[remote]'") from error
        self._obstore = obstore
        self._timeout = timeout
        if isinstance(remote, str):
            self.name = _without_secrets(remote)
            self._reading = _open(remote, options or {}, timeout)
            in_memory = remote.startswith("memory:")  # where another store would hold other objects
            self._writing = self._reading if in_memory else _open(remote, options or {}, max(UPLOAD_S, timeout))
        elif options:
            raise SettingsError("expected remote_options with a URL only, found an open store; give them to that store")
        elif not isinstance(remote, obstore.store.ObjectStoreMethods):
            raise SettingsError(
                f"expected the URL of a remote or a store object of obstore, found {type(remote).__name__}"
            )
        else:
            self.name = repr(remote)
            self._reading = self._writing = remote

    def read(self, path: str) -> tuple[int, Iterator[memoryview]]:
        """An object's size in bytes, and its bytes part by part: never more, and never fewer without an error.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: it cannot be read; the parts raise it too.
        """
        with self._explained():
            result = self._obstore.get(self._reading, path)
            return result.meta["size"], self._parts(result, result.meta["size"], time.monotonic() + 2 * self._timeout)

    def write(self, path: str, file: Path) -> None:
        """Upload a file; nobody sees half of it.

        Raises:
            FileNotFoundError: there is no such file.
            RemoteError: it was not stored.
        """
        with self._explained():
            self._obstore.put(self._writing, path, file)

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens when it is gone.

        Raises:
            RemoteError: it cannot be deleted.
        """
        with self._explained():
            try:
                self._obstore.delete(self._reading, path)
            except FileNotFoundError:
                return

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Path and size in bytes of every object below a prefix; one request for a thousand of them.

        Raises:
            RemoteError: they cannot be listed.
        """
        with self._explained():
            for page in self._obstore.list(self._reading, prefix):
                for found in page:
                    yield found["path"], found["size"]

    def _parts(self, result: Any, size: int, deadline: float) -> Iterator[memoryview]:
        left = size
        with self._explained():
            for part in result.stream(CHUNK):
                left -= len(part)
                if left < 0 or time.monotonic() > deadline:
                    break
                yield memoryview(part)
        if left:
            late = time.monotonic() > deadline
            raise RemoteError(
                f"expected {size} bytes within {2 * self._timeout:g} s, found {size - left}",
                "timeout" if late else "server",
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise RemoteError(_first_line(error), _reason(error)) from error


def _open(url: str, options: Mapping[str, Any], timeout: float) -> "ObjectStore":
    from obstore.store import from_url

    span = timedelta(seconds=timeout)
    scheme = urlsplit(url).scheme
    settings: dict[str, Any] = dict(options)
    if scheme == "file":
        settings = {"mkdir": True} | settings
    elif scheme != "memory":
        client: dict[str, Any] = {"timeout": span, "connect_timeout": span}
        endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
        client["allow_http"] = scheme == "http" or str(endpoint).startswith("http://")  # whoever writes it wants it
        settings["client_options"] = client | dict(options.get("client_options", {}))
        retries = {"max_retries": 2, "retry_timeout": span}
        settings["retry_config"] = retries | dict(options.get("retry_config", {}))
    try:
        return from_url(url, **settings)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # some options that it does not know make obstore panic, which is no Exception
        raise SettingsError(
            f"expected a remote such as s3://bucket/prefix, gs://bucket, az://container or file:///folder, found "
            f"{_without_secrets(url)!r}: {_first_line(error)}"
        ) from error


def _without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/") if parts.scheme else url


def _first_line(error: BaseException) -> str:
    """What obstore says without its dump of structures, and without what a URL carries as its query."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\?\S*", "", lines[0])[:300]


def _reason(error: Exception) -> str:
    said = f"{type(error).__name__} {error}".lower()
    patterns = {
        "denied": r"permissiondenied|unauthenticated|status code: 40[13]",
        "server": r"status code: 5\d\d",
        "timeout": r"timed ?out",
        "connection": r"error sending request|connect|body|dns",
    }
    return next((reason for reason, pattern in patterns.items() if re.search(pattern, said)), "other")
