"""One model, many users: they compute in turn, and the last one leaves it as the first one found it."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["SharedModel", "Turns"]


class Turns:
    """A lock that goes to those who wait in the order in which they came.

    `threading.Lock` goes to whoever is quickest, and that is who gave it back: an engine in the middle of a long answer
    would keep all others waiting until its end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()  # whose turn it is, then those who wait

    def __enter__(self) -> None:
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            except BaseException:  # an interrupt, say: nobody may wait for who has left
                self._line.remove(ticket)
                self._changed.notify_all()
                raise

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()


class SharedModel:
    """What all users of a transformers model share.

    Hooks change what a model computes for everybody, and recorded passes have buffers of their own: two threads must
    not compute with it at once, whoever they work for.

    Args:
        leave: called with the model when nobody uses it any more.

    Attributes:
        turns: held while computing with the model.
    """

    def __init__(self, leave: Callable[[Any], object]) -> None:
        self.turns = Turns()
        self._leave = leave
        self._users = 0

    @classmethod
    def join(cls, model: Any, enter: Callable[[Any], Callable[[Any], object]]) -> "SharedModel":
        """Use a model, with those who use it already.

        Args:
            model: of transformers.
            enter: makes it ready for the first user, and returns what undoes that; neither holds on to it.
        """
        with _changing:
            shared = _shared.get(model)
            if shared is None:
                shared = _shared[model] = cls(enter(model))
            shared._users += 1
            return shared

    def part(self, model: Any) -> None:
        """No longer use it."""
        with _changing:
            self._users -= 1
            if not self._users:
                del _shared[model]
                self._leave(model)


_changing = threading.Lock()
_shared: "WeakKeyDictionary[Any, SharedModel]" = WeakKeyDictionary()
