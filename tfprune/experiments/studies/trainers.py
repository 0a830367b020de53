"""The trainers of one command: tracing a network takes seconds, so that the last ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfprune.training.loop import Trainer

_MOST = 4  # each holds a network and, beside every replica, the images


class Trainers:
    """Trainers by what they are for; the one that was not used for longest makes room."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Trainer] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Trainer]) -> Trainer:
        """The trainer of a key; made unless it is there."""
        if key not in self._kept:
            while len(self._kept) >= _MOST:  # before the new one needs the memory
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]
