"""A release plan: mechanism, clip bound, lattice step, noise and sampling of a release, frozen in one object.

The sensitivity, the sampler and the accounted event are computed from these fields and stored nowhere, so that they
cannot disagree. Four constructors make every plan there is:

    counts    integer tables; a patient adds one to each of at most `cells` cells          discrete Laplace or Gaussian
    vector    real vectors, a patient bounded in L2                                        rounded or discrete Gaussian
    dp_sgd    the steps of DP-SGD at one site, patients taken by Poisson sampling          rounded Gaussian
    none      no noise, no guarantee

`noise` is the scale, in the unit of the values, of the noise that is *accounted*; the sampler's scale follows. With
`honest` = h, sites add shares of which any h make up that noise (`distributed`); without, each adds all (`local`).
Discrete Laplace noise of counts comes in Polya shares, discrete Gaussian noise in smaller discrete Gaussians.

>>> plan = ReleasePlan.vector(clip=1.0, dimensions=100, noise=4.0)
>>> plan.event.law, round(plan.event.noise, 3)
('gaussian', 3.998)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from equipoise.common.privacy.events import RELATION, Event
from equipoise.common.privacy.mechanisms import (
    SMOOTHING_STEPS,
    DiscreteGaussian,
    DiscreteLaplace,
    Mechanism,
    NoNoise,
    PolyaShare,
    RoundedGaussian,
)
from equipoise.common.privacy.rounding import choose_step, lattice_sensitivity

Kind = Literal["counts", "vector", "dp_sgd", "none"]
Norm = Literal["l1", "l2"]
Noise = Literal["none", "discrete_laplace", "discrete_gaussian", "rounded_gaussian"]
SMALLEST_SHARE_STEPS = 4.0  # below, sums of discrete Gaussians are not accounted as one (mechanisms.py)
# The laws that have a proof for each kind of query, with the norm of the bound.
PROVEN: Mapping[tuple[str, str], Norm] = {
    ("none", "none"): "l2",
    ("counts", "discrete_laplace"): "l1",
    ("counts", "discrete_gaussian"): "l2",
    ("vector", "rounded_gaussian"): "l2",
    ("vector", "discrete_gaussian"): "l2",
    ("dp_sgd", "rounded_gaussian"): "l2",
}


@dataclass(frozen=True)
class ReleasePlan:
    """Use the constructors below; see the module's text.

    Attributes:
        kind: what is released.
        mechanism: the law of the noise.
        clip: bound of one patient's contribution: the number of cells (counts), or its L2 norm.
        dimensions: number of coordinates.
        step: lattice step, a power of two, in the unit of the values.
        noise: scale of the accounted noise in the unit of the values: sigma, or the Laplace scale.
        releases: how often the plan releases (rounds, or steps of DP-SGD).
        rate: probability with which one release takes a patient.
        honest: number of shares that make up the noise; None where each site adds all of it.

    Raises:
        ValueError: the fields are no plan that has a proof.
    """

    kind: Kind
    mechanism: Noise
    clip: float
    dimensions: int
    step: float
    noise: float
    releases: int
    rate: float
    honest: int | None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or (self.kind, self.mechanism) not in PROVEN:
            raise ValueError(f"kind={self.kind!r}, mechanism={self.mechanism!r}: no proof for the two together")
        if not (self.step > 0 and math.frexp(self.step)[0] == 0.5):
            raise ValueError(f"step={self.step}: expected a positive power of two")
        if self.kind == "none":
            return
        if self.kind == "counts" and not (self.step == 1 and self.clip == int(self.clip)):
            raise ValueError(f"clip={self.clip}, step={self.step}: counts have whole cells and a step of 1")
        if self.kind == "counts" and not 1 <= self.clip <= self.dimensions:
            raise ValueError(f"clip={self.clip}: a patient fills 1 to dimensions={self.dimensions} cells")
        if self.rate < 1 and self.kind != "dp_sgd":
            raise ValueError(f"rate={self.rate}: only DP-SGD samples patients, not {self.kind}")
        self._check_shares()
        _ = self.event, self.event_if_others_collude, self.sampler  # each refuses values that it has no proof for

    def _check_shares(self) -> None:
        if self.honest is None:
            return
        polya = self.mechanism == "discrete_laplace"
        if self.honest < 1 or not (polya or self.mechanism == "discrete_gaussian"):
            # A site's own noisy steps are not a sum of patients, and rounded noise does not add up. What one Polya
            # share is worth is known for cells that move by one step (polya.py), which is what counts do.
            raise ValueError(
                f"honest={self.honest}: shares need discrete_gaussian noise, or counts, and at least 1 honest site"
            )
        if polya:
            return
        if self.noise / self.step / math.sqrt(self.honest) < SMALLEST_SHARE_STEPS:
            raise ValueError(
                f"noise={self.noise} in {self.honest} shares on step={self.step}: a share is below "
                f"{SMALLEST_SHARE_STEPS:g} lattice steps; choose a smaller step or more noise"
            )

    @classmethod
    def counts(
        cls,
        cells: int,
        dimensions: int,
        noise: float,
        mechanism: Literal["discrete_laplace", "discrete_gaussian"] = "discrete_laplace",
        releases: int = 1,
        honest: int | None = None,
    ) -> ReleasePlan:
        """Tables of `dimensions` cells in all, of which a patient adds one to at most `cells` different ones.

        Args:
            cells: largest number of cells that one patient fills (one for each table).
            dimensions: cells of all tables.
            noise: Laplace scale or sigma, in patients.
            mechanism: Laplace for few tables; the Gaussian is better from about six.
            releases: how often the tables are released.
            honest: shares that make up the noise.
        """
        return cls("counts", mechanism, float(cells), dimensions, 1.0, noise, releases, 1.0, honest)

    @classmethod
    def vector(
        cls, clip: float, dimensions: int, noise: float, releases: int = 1, honest: int | None = None
    ) -> ReleasePlan:
        """A real vector, a patient's part of L2 norm `clip` at most; `noise` is sigma in the same unit."""
        mechanism: Noise = "rounded_gaussian" if honest is None else "discrete_gaussian"
        step = choose_step(clip, dimensions)
        return cls("vector", mechanism, clip, dimensions, step, noise, releases, 1.0, honest)

    @classmethod
    def dp_sgd(cls, clip: float, dimensions: int, noise: float, rate: float, steps: int) -> ReleasePlan:
        """`steps` steps of DP-SGD at one site: patients by Poisson sampling at `rate`, each clipped to `clip` in L2.

        `noise` is sigma of the noise on the *sum* of the clipped gradients (Opacus: noise_multiplier * max_grad_norm).
        """
        step = choose_step(clip, dimensions)
        return cls("dp_sgd", "rounded_gaussian", clip, dimensions, step, noise, steps, rate, None)

    @classmethod
    def none(cls, step: float = 1.0) -> ReleasePlan:
        """No noise and no guarantee, on a lattice of any step."""
        return cls("none", "none", 0.0, 1, step, 0.0, 1, 1.0, None)

    @property
    def norm(self) -> Norm:
        """The norm in which one patient is bounded."""
        return PROVEN[self.kind, self.mechanism]

    @property
    def sensitivity(self) -> float:
        """How far one patient moves a release, rounding included, in the unit of the values; infinite for none."""
        if self.kind == "none":
            return math.inf
        if self.kind == "counts":
            return self.clip if self.norm == "l1" else math.sqrt(self.clip)
        return lattice_sensitivity(self.clip, self.step, self.dimensions)

    @property
    def sampler(self) -> Mechanism:
        """The mechanism that each site runs for each release: all of the noise, or its share."""
        steps = self.noise / self.step
        if self.mechanism == "none":
            return NoNoise()
        if self.mechanism == "discrete_laplace":
            return DiscreteLaplace(steps) if self.honest in (None, 1) else PolyaShare(steps, self.honest)
        if self.mechanism == "rounded_gaussian":
            return RoundedGaussian(steps)
        variance = steps**2 / (self.honest or 1)
        # Vectors are accounted as the Gaussian of sqrt(sigma^2 - tau^2), counts by the probability mass function.
        return DiscreteGaussian(math.sqrt(variance + (SMOOTHING_STEPS**2 if self.kind == "vector" else 0.0)))

    @property
    def site_variance(self) -> float:
        """Variance of what one site adds to one entry of one release, in the unit of the values; 0 without noise."""
        return (float(self.sampler.describe()["standard_deviation_steps"]) * self.step) ** 2

    @property
    def event(self) -> Event:
        """The event of all releases together, in the view of an honest majority."""
        return self._event(self.noise)

    @property
    def event_if_others_collude(self) -> Event:
        """The event of all releases together, to a server and all other sites acting as one."""
        if self.mechanism == "discrete_laplace":
            alone = self.honest or 1
            return self.event if alone == 1 else replace(self.event, law="polya_share", shares=alone)
        return self._event(self.noise / math.sqrt(self.honest or 1))

    def _event(self, noise: float) -> Event:
        if self.kind == "none":
            return Event("none")
        if self.kind == "counts":
            law: Literal["discrete_laplace", "discrete_gaussian"]
            law = "discrete_laplace" if self.mechanism == "discrete_laplace" else "discrete_gaussian"
            return Event(law, noise, count=int(self.clip) * self.releases)
        return Event("gaussian", noise / self.sensitivity, count=self.releases, rate=self.rate)

    def scaled(self, scale: float, share: float) -> ReleasePlan:
        """The plan with the noise that a phase with `share` of the budget gets at noise scale `scale`.

        Each of the T releases has share / T: sigma = scale * sensitivity * rate * sqrt(T / share), and for Laplace
        noise scale * L1 * sqrt(T / (2 share)), the same variance. The factor `rate` is the first-order gain of
        sampling; it only decides how phases split the budget, the accountant decides what they cost.

        Raises:
            ValueError: the plan has no noise, or `share` is not positive.
        """
        if self.kind == "none" or not 0 < share <= 1:
            raise ValueError(f"share={share} of a plan of kind {self.kind}: expected noise and a share in (0, 1]")
        variance = self.releases / (share * (2 if self.norm == "l1" else 1))
        return replace(self, noise=scale * self.sensitivity * self.rate * math.sqrt(variance))

    def to_json(self) -> dict[str, Any]:
        """The fields and, for readers, what follows from them; plain JSON values."""
        derived = {
            "relation": RELATION,
            "norm": self.norm,
            "sensitivity": None if self.kind == "none" else self.sensitivity,
            "sampler": self.sampler.describe(),
            "event": self.event.to_json(),
            "event_if_others_collude": self.event_if_others_collude.to_json(),
        }
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "derived": derived}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ReleasePlan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: a key is missing or unknown, the fields are no plan, or what is said to follow from them
                does not.
        """
        fields = {name: content for name, content in value.items() if name != "derived"}
        if set(fields) != set(ReleasePlan.__dataclass_fields__):
            raise ValueError(f"plan with keys {sorted(fields)}: expected {sorted(ReleasePlan.__dataclass_fields__)}")
        plan = ReleasePlan(**fields)
        if value.get("derived") != plan.to_json()["derived"]:
            raise ValueError(f"plan of kind {plan.kind}: its event, noise or bound does not follow from its fields")
        return plan
