"""How much is done for callers who showed no secret: a bucket of tokens for each address, and one for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

EACH_BURST, EACH_PER_SECOND = 200.0, 20.0
ALL_BURST, ALL_PER_SECOND = 400.0, 100.0
MOST_ADDRESSES = 4096


@dataclass(slots=True)
class Bucket:
    """Fills by itself, and is drawn from."""

    burst: float
    per_second: float
    left: float
    at: float

    def fill(self, now: float) -> None:
        """Take in what has come since."""
        self.left = min(self.burst, self.left + (now - self.at) * self.per_second)
        self.at = now


class Strangers:
    """Remembers how much was done for whom lately."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._all = Bucket(ALL_BURST, ALL_PER_SECOND, ALL_BURST, 0.0)
        self._each: OrderedDict[str, Bucket] = OrderedDict()

    def may(self, address: str, now: float) -> bool:
        """Whether one more request of this address is looked at.

        Args:
            address: Where it comes from.
            now: Seconds on a clock that only goes forward.
        """
        with self._guard:
            own = self._each.setdefault(address, Bucket(EACH_BURST, EACH_PER_SECOND, EACH_BURST, now))
            self._each.move_to_end(address)
            if len(self._each) > MOST_ADDRESSES:
                self._each.popitem(last=False)
            own.fill(now)
            self._all.fill(now)
            if own.left < 1 or self._all.left < 1:
                return False
            own.left -= 1
            self._all.left -= 1
            return True
