"""How much a gap differs between hospitals: random effects over sites, from sums of scalars.

Site k has a signed difference d_k between two groups, with variance v_k (`site_contrast`). Fixed effects weigh it by
w_k = 1 / v_k; random effects by 1 / (v_k + tau^2), where tau is the standard deviation of the true differences over
hospitals. DerSimonian and Laird's tau^2, Cochran's Q and I^2 follow from five sums over sites (`moments`), and with
tau^2 known the mean and its interval follow from the same five sums with the new weights, in a second round. REML needs
the sites' own values, which only per-site releases give.

The interval of the mean is Hartung and Knapp's, modified so that it is never narrower than the plain one, and t with
K - 1 degrees of freedom; a hospital like these has its difference inside the prediction interval, t with K - 2 (Higgins
2009). With few hospitals all of this knows little: at four hospitals with 30 positives a group and true tau .05 half of
all estimates of tau are 0 (evaluation specification, section 4). An estimate of 0 therefore never reads as "no
heterogeneity" (`power_note`).

References:
    DerSimonian and Laird, Control Clin Trials 1986;7:177-188. Hartung and Knapp, Stat Med 2001;20:1771-1782; modified:
    Rover, Knapp and Friede, BMC Med Res Methodol 2015;15:99. Higgins, Thompson and Spiegelhalter, J R Stat Soc A
    2009;172:137-159. Viechtbauer, Stat Med 2007;26:37-52 (Q profile) and J Educ Behav Stat 2005;30:261-293 (REML).

>>> effects, variances = np.array([0.10, 0.30, 0.35]), np.array([0.01, 0.01, 0.01])
>>> sums = moments(effects, variances).sum(axis=0)
>>> float(round(cochran_q(sums), 4)), round(dersimonian_laird(sums), 6)
(3.5, 0.0075)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy  # of which parts are loaded when they are first used
from scipy.special import gammaincinv, stdtrit

from equipoise.common.fairness.estimate import LEVEL, Estimate
from equipoise.common.fairness.noise import CellNoise, cell_variances
from equipoise.common.fairness.shares import shares_of
from equipoise.common.fairness.tables import Counts, Floats

FEWEST_SITES = 3  # t_{K-2} has no spread with two


@dataclass(frozen=True)
class Heterogeneity:
    """A difference between two groups over hospitals.

    Attributes:
        mean: the average difference over hospitals, with its modified Hartung-Knapp interval, cut to -1..1.
        prediction: (low, high) in which the difference at a further hospital of this kind lies, at the same level; cut
            as well.
        tau: standard deviation of the true differences.
        tau_interval: its Q-profile interval; None where only sums are known.
        q, i_squared: Cochran's Q and the share of the variation that is not sampling.
        sites: hospitals with an estimable difference.
        note: what so few hospitals cannot show.
    """

    mean: Estimate
    prediction: tuple[float, float] | None
    tau: float | None
    tau_interval: tuple[float, float] | None
    q: float | None
    i_squared: float | None
    sites: int
    note: str


def site_contrast(
    rate: str, counts: Counts, group: int, reference: int, *, minimum: int = 1, noise: CellNoise = 0.0
) -> tuple[float, float] | None:
    """One hospital's difference between two groups and its variance, or None where a group has too few patients.

    The variance is taken at shares with one success and one failure added (Agresti and Caffo 2000), so that a rate of 0
    or 1 of a few patients does not look certain and take all the weight; the noise of the table is added to it.

    Args:
        rate: a name of `shares.RATES`.
        counts: (G + 1, 2, 2) of one hospital.
        group, reference: rows; the difference is group less reference.
        minimum: smallest denominator.
        noise: as in `rates.rate_by_group`.
    """
    variances = cell_variances(noise, counts)
    rates = shares_of([(rate, counts[row], variances[row]) for row in (group, reference)])
    if rates.lacking(minimum):
        return None
    smoothed = (rates.shares * rates.trials + 1) / (rates.trials + 2)
    spread = smoothed * (1 - smoothed) / (rates.trials + 2) + rates.noise
    return float(rates.shares[0] - rates.shares[1]), float(spread.sum())


def moments(effects: Floats, variances: Floats, tau_squared: float = 0.0) -> Floats:
    """Each site's row of what is summed over sites: 1, w, w d, w d^2, w^2, with w = 1 / (v + tau_squared)."""
    weight = 1 / (variances + tau_squared)
    rows: Floats = np.stack([np.ones_like(weight), weight, weight * effects, weight * effects**2, weight**2], axis=-1)
    return rows


def cochran_q(sums: Floats) -> float:
    """Weighted squares of the sites' distances from their weighted mean, from the sums of `moments`."""
    _, weight, first, second, _ = sums
    return max(float(second - first * first / weight), 0.0)


def dersimonian_laird(sums: Floats) -> float:
    """tau^2 from the sums of `moments` at tau_squared 0; at least 0."""
    sites, weight, *_, squared = sums
    if sites < 2:
        return 0.0
    return max((cochran_q(sums) - float(sites - 1)) / float(weight - squared / weight), 0.0)


def reml(effects: Floats, variances: Floats) -> float:
    """tau^2 of greatest restricted likelihood, by Fisher scoring; at least 0.

    Raises:
        ValueError: fewer than two sites.
    """
    if len(effects) < 2:
        raise ValueError("REML needs at least two sites")
    tau_squared = dersimonian_laird(moments(effects, variances).sum(axis=0))
    for _ in range(500):
        weight = 1 / (variances + tau_squared)
        mean = (weight * effects).sum() / weight.sum()
        # d/dtau^2 of the restricted log likelihood, and its expected second derivative.
        trace = weight.sum() - (weight**2).sum() / weight.sum()
        score = (weight**2 * (effects - mean) ** 2).sum() - trace
        mixed = (weight**2).sum() / weight.sum()
        information = (weight**2).sum() - 2 * (weight**3).sum() / weight.sum() + mixed * mixed
        following = max(tau_squared + score / information, 0.0)
        if abs(following - tau_squared) < 1e-12:
            return float(following)
        tau_squared = following
    return float(tau_squared)


def q_profile(effects: Floats, variances: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Interval of tau: the values at which Q, with weights 1 / (v + tau^2), is no unlikely chi-squared."""

    def q(tau: float) -> float:
        return cochran_q(moments(effects, variances, tau * tau).sum(axis=0))

    degrees, highest = len(effects) - 1, 1.0
    tail = (1 - level) / 2
    limits = []
    for quantile in (2 * float(gammaincinv(degrees / 2, 1 - tail)), 2 * float(gammaincinv(degrees / 2, tail))):  # chi2
        while q(highest) > quantile:
            highest *= 2
        limits.append(
            0.0 if q(0.0) <= quantile else float(scipy.optimize.brentq(lambda x, c=quantile: q(x) - c, 0.0, highest))
        )
    return limits[0], limits[1]


def from_sums(
    metric: str, group: str, first: Floats, second: Floats, tau_squared: float, *, n: int, level: float = LEVEL
) -> Heterogeneity:
    """Random effects from sums over sites.

    Args:
        metric, group: of the estimate, such as `tpr_difference` and `women less men`.
        first: (5,) sum of `moments` at tau_squared 0.
        second: (5,) sum of `moments` at `tau_squared`.
        tau_squared: what the second round was asked with (`dersimonian_laird` of the first).
        n: patients behind it.
        level: of both intervals.

    Edge cases: with fewer than three sites nothing is estimable.
    """
    sites = round(float(first[0]))
    if sites < FEWEST_SITES:
        reason = f"{sites} hospitals with both groups, {FEWEST_SITES} needed"
        lacking = Estimate.missing(metric, reason, n=n, level=level, group=group)
        return Heterogeneity(lacking, None, None, None, None, None, sites, power_note(sites))
    mean = float(second[2] / second[1])
    # Hartung and Knapp scale the variance by Q / (K - 1); the modified form never by less than 1.
    scale = max(cochran_q(second) / (sites - 1), 1.0)
    variance = scale / float(second[1])
    half = float(stdtrit(sites - 1, (1 + level) / 2)) * math.sqrt(variance)
    estimate = Estimate.of(
        metric,
        mean,
        max(mean - half, -1.0),
        min(mean + half, 1.0),
        n=n,
        method="random effects, modified hartung-knapp",
        level=level,
        group=group,
    )
    spread = float(stdtrit(sites - 2, (1 + level) / 2)) * math.sqrt(tau_squared + variance)
    q = cochran_q(first)
    return Heterogeneity(
        mean=estimate,
        prediction=(max(mean - spread, -1.0), min(mean + spread, 1.0)),
        tau=math.sqrt(tau_squared),
        tau_interval=None,
        q=q,
        i_squared=max((q - (sites - 1)) / q, 0.0) if q > 0 else 0.0,
        sites=sites,
        note=power_note(sites),
    )


def from_sites(
    metric: str, group: str, effects: Floats, variances: Floats, *, n: int, level: float = LEVEL
) -> Heterogeneity:
    """Random effects from the sites' own values: tau by REML, with its Q-profile interval.

    Args:
        effects, variances: (K,) from `site_contrast`, of the sites that have one.
        metric, group, n, level: as in `from_sums`.
    """
    if len(effects) < FEWEST_SITES:
        none = np.zeros(5)
        none[0] = len(effects)
        return from_sums(metric, group, none, none, 0.0, n=n, level=level)
    tau_squared = reml(effects, variances)
    first, second = (moments(effects, variances, extra).sum(axis=0) for extra in (0.0, tau_squared))
    found = from_sums(metric, group, first, second, tau_squared, n=n, level=level)
    return replace(found, tau_interval=q_profile(effects, variances, level))


def shrunken(effects: Floats, variances: Floats, tau_squared: float) -> Floats:
    """(K,) best linear predictions of the sites' true differences: drawn to the mean by how little each site knows.

    The worst hospital is the largest of these; the largest raw difference is mostly the smallest hospital's noise.
    """
    weight = 1 / (variances + tau_squared)
    mean = float((weight * effects).sum() / weight.sum())
    drawn: Floats = mean + tau_squared / (tau_squared + variances) * (effects - mean)
    return drawn


def power_note(sites: int) -> str:
    """What stands beside every estimate of tau."""
    return (
        f"{sites} hospitals cannot rule out differences between them: tau is often estimated as 0 where it is not; "
        "read the prediction interval"
    )
