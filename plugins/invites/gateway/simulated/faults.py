"""The faults that the simulated gateway can have, and the order in which its requests get them."""

import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What a fault does: ``before`` the work of the request, ``after`` it, or to its answer.
KINDS = {
    "hang_before": "takes the request, does nothing, and sends nothing",
    "late": "sends nothing, and does the work after the client has gone",
    "hang_after": "does the work and sends nothing",
    "reset_before": "resets the connection before the work",
    "reset_after": "does the work and resets the connection",
    "limited": "429 with seconds",
    "limited_date": "429 with a time",
    "busy": "503 with seconds",
    "failed": "500 before the work",
    "failed_after": "502 after the work",
    "truncated": "does the work, and ends the connection in the middle of the answer",
    "unreadable": "does the work, and answers with HTML",
    "huge": "does the work, and answers with two million bytes",
    "slow": "does the work, and sends the answer byte by byte",
    "forget": "forgets all ids, and then works as usual",
    "omit_page": "leaves the first page out of a listing",
    "hide_one": "leaves the first member out of a page of a listing, and counts one less",
    "none": "no fault",
}


@dataclass
class Faults:
    """The faults to come. Each is for one sort of request: ``invite``, ``remove``, ``find``, ``list`` or ``any``."""

    ordered: deque[Mapping[str, Any]] = field(default_factory=deque)
    #: A share of all requests gets one of the kinds by chance.
    share: float = 0.0
    kinds: Sequence[str] = ()
    seconds: float | None = None
    dice: random.Random = field(default_factory=random.Random)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def order(self, ordered: Sequence[Mapping[str, Any]]) -> None:
        """Append faults, ``{"on", "kind", "seconds"}``, one for each request of that sort."""
        unknown = {str(each.get("kind")) for each in ordered} - set(KINDS)
        if unknown:
            raise ValueError(f"unknown faults: {sorted(unknown)}")
        with self.lock:
            self.ordered.extend(ordered)

    def choose(self, share: float, kinds: Sequence[str], seed: int, seconds: float | None) -> None:
        """Let each request have a fault with the probability ``share``, in an order that ``seed`` decides."""
        with self.lock:
            self.share, self.kinds, self.dice, self.seconds = share, kinds, random.Random(seed), seconds

    def reset(self) -> None:
        """Have no faults."""
        with self.lock:
            self.ordered.clear()
            self.kinds = ()

    def take(self, request: str) -> Mapping[str, Any]:
        """Return the fault of the next request of a sort."""
        with self.lock:
            for each in self.ordered:
                if each.get("on", "any") in {"any", request}:
                    self.ordered.remove(each)
                    return each
            if self.kinds and self.dice.random() < self.share:
                return {"kind": self.dice.choice(self.kinds), "seconds": self.seconds}
        return {"kind": "none"}
