"""CPU seconds of this process by who spends them, where sites and the server share it, and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Spent:
    """CPU seconds of all sites and of the server, and the bytes that all sites sent and were sent."""

    sites_s: float
    server_s: float
    sent: int
    received: int

    @property
    def total_s(self) -> float:
        """CPU seconds of everybody."""
        return self.sites_s + self.server_s


class Meter:
    """CPU seconds of this process, by who spends them."""

    def __init__(self) -> None:
        self.spent = {"site": 0.0, "server": 0.0}

    def run(
        self, who: str, work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        """The result of `work`, whose seconds are `who`'s."""
        begun = time.process_time()
        result = work(*args, **kwargs)
        self.spent[who] += time.process_time() - begun
        return result
