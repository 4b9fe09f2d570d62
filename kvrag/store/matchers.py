"""Text matchers that follow the index: one per scope, brought up to date when anybody has committed anything."""

import threading
from dataclasses import dataclass, field

import numpy as np

from kvrag.matching import TextMatcher
from kvrag.packet import Scope
from kvrag.store.index import Index

__all__ = ["Matchers"]


@dataclass
class _Followed:
    opened: int
    deletions: int
    matcher: TextMatcher = field(default_factory=TextMatcher)
    version: tuple[int, int] | None = None
    rowid: int = 0


class Matchers:
    """The matchers of an index's scopes. Thread-safe."""

    def __init__(self, index: Index):
        self._index = index
        self._scopes: dict[str, _Followed] = {}
        self._lock = threading.Lock()

    def of(self, scope: Scope) -> TextMatcher:
        """The matcher of a scope's texts, including what other processes have committed."""
        with self._lock:
            version = self._index.version()
            followed = self._scopes.get(scope.digest)
            if followed is None or followed.version != version:
                followed = self._follow(scope.digest, followed, version)
            return followed.matcher

    def _follow(self, scope: str, followed: _Followed | None, version: tuple[int, int]) -> _Followed:
        deletions = self._index.deletions()
        # A removed text proposes spans that `find` then rejects; only many of them are worth building everything again.
        if (
            followed is None
            or followed.opened != version[0]
            or deletions - followed.deletions > len(followed.matcher) // 8
        ):
            followed = self._scopes[scope] = _Followed(opened=version[0], deletions=deletions)
        texts = self._index.texts_after(scope, followed.rowid)
        if len(texts):
            rowids, heads, hashes, lengths = np.ascontiguousarray(texts.T)
            followed.matcher.add(heads.view(np.uint64), hashes.view(np.uint64), lengths)
            followed.rowid = int(rowids[-1])
        followed.version = version
        return followed
