"""Events: what the accountant has to know of a release, and nothing of its data.

An event is one of five laws, its noise in units of one patient's influence, the probability with which a patient takes
part, and how often it happens. A list of events is their composition.

    none               released without noise: every epsilon is infinite
    gaussian           Gaussian of standard deviation `noise`, L2 influence 1; with rate < 1 Poisson-sampled
    discrete_gaussian  the discrete Gaussian of parameter `noise` on the integers, influence one step
    discrete_laplace   the discrete Laplace of scale `noise` on the integers, influence one step; the same loss as
                       randomised response of epsilon 1 / noise
    polya_share        one of `shares` shares of a discrete Laplace of scale `noise` (polya.py), influence one step

>>> Event("gaussian", noise=2.0, count=3).dp_event
SelfComposedDpEvent(event=GaussianDpEvent(noise_multiplier=2.0), count=3)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import dp_accounting

Law = Literal["none", "gaussian", "discrete_gaussian", "discrete_laplace", "polya_share"]
RELATION = "add_or_remove_one"  # the one neighbouring relation of every event, bound and figure


@dataclass(frozen=True)
class Event:
    """See the module's text.

    Raises:
        ValueError: an unknown law, noise that is not positive and finite, a count below 1, a rate outside (0, 1], or
            a rate below 1 with another law than the Gaussian, or shares that do not belong to the law.
    """

    law: Law
    noise: float = 0.0
    count: int = 1
    rate: float = 1.0
    shares: int = 1  # that make up the noise, of which the event is one; 1 with every law but polya_share

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise ValueError(f"law={self.law!r}: expected one of {', '.join(get_args(Law))}")
        if self.law == "none":
            if self.noise != 0:
                raise ValueError(f"noise={self.noise}: the law none has no noise")
        elif not 0 < self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: expected a positive, finite scale")
        if self.count < 1:
            raise ValueError(f"count={self.count}: expected at least 1")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: expected more than 0, at most 1")
        if self.rate < 1 and self.law != "gaussian":
            raise ValueError(f"rate={self.rate}: only a Gaussian is accounted with sampling, not {self.law}")
        if self.shares < 1 or (self.shares > 1) != (self.law == "polya_share"):
            raise ValueError(f"shares={self.shares}: expected at least 2 with polya_share, and 1 with {self.law}")

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """The event in dp_accounting's words, which lack the discrete Gaussian and shares (UnsupportedDpEvent)."""
        import dp_accounting  # which takes a second to load; a study without privacy asks it nothing

        if self.law == "none":
            return dp_accounting.NonPrivateDpEvent()
        if self.law in ("discrete_gaussian", "polya_share"):
            return dp_accounting.UnsupportedDpEvent()
        once: dp_accounting.DpEvent
        if self.law == "discrete_laplace":
            once = dp_accounting.dp_event.DiscreteLaplaceDpEvent(1 / self.noise, 1)
        else:
            once = dp_accounting.GaussianDpEvent(self.noise)
        if self.rate < 1:
            once = dp_accounting.PoissonSampledDpEvent(self.rate, once)
        return dp_accounting.SelfComposedDpEvent(once, self.count) if self.count > 1 else once

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the relation under which the event is meant; `shares` only where there are some."""
        value = {**vars(self), "relation": RELATION}
        if self.shares == 1:
            del value["shares"]
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Event:
        """The event that `to_json` wrote.

        Raises:
            ValueError: another relation, a missing or an unknown key, or values that no event has.
        """
        fields = dict(value)
        relation = fields.pop("relation", None)
        if relation != RELATION:
            raise ValueError(f"relation={relation!r}: expected {RELATION}; figures of two relations never mix")
        if set(fields) - {"shares"} != {"law", "noise", "count", "rate"}:
            raise ValueError(f"event with keys {sorted(fields)}: expected law, noise, count, rate")
        return Event(**fields)
