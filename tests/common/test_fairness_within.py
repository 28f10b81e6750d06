"""Pooled = within + composition: the three cases of the specification, sums over sites, Sato's variance, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.fairness.within import TERMS, decompose, stratum_terms


def hospital(sizes: tuple[int, int], rates: tuple[float, float]) -> np.ndarray:
    """counts[g, y, decision] of positives alone; every rate must be whole."""
    counts = np.zeros((3, 2, 2), dtype=np.int64)
    for g, (n, rate) in enumerate(zip(sizes, rates, strict=True)):
        counts[g, 1, 1] = round(n * rate)
        counts[g, 1, 0] = n - counts[g, 1, 1]
    return counts


# (pooled gap, within) of group 0 less group 1.
CASES = {
    "A: no gap anywhere, groups at different hospitals": (
        [hospital((900, 100), (0.95, 0.95)), hospital((100, 900), (0.70, 0.70))],
        (0.20, 0.0),
    ),
    "B: .20 at every hospital, hidden by the mix": (
        [hospital((100, 200), (0.95, 0.75)), hospital((200, 100), (0.55, 0.35))],
        (0.2 / 3, 0.20),
    ),
    "C: .10 at every hospital, none pooled": (
        [hospital((200, 400), (0.90, 0.80)), hospital((400, 200), (0.60, 0.50))],
        (0.0, 0.10),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_cases_of_the_specification(name: str) -> None:
    sites, (pooled, within) = CASES[name]
    terms = sum(stratum_terms("tpr", site, 0, 1) for site in sites)
    found = decompose("tpr", sum(sites), terms, 0, 1, ["a", "b"])
    assert found.pooled.value == pytest.approx(pooled, abs=1e-12)
    assert found.within.value == pytest.approx(within, abs=1e-12)
    assert found.composition == pytest.approx(pooled - within, abs=1e-12)
    assert found.sites == 2
    assert found.pooled.group == "a less b"


@given(seed=st.integers(0, 2**32 - 1), sites=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_it_equals_the_direct_formula_for_every_partition(seed: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, 12, (sites, 3, 2, 2))
    tables[rng.random(sites) < 0.3, 1] = 0  # sites with one group
    terms = sum(stratum_terms("tpr", table, 0, 1) for table in tables)
    top = bottom = p_sum = q_sum = 0.0
    for table in tables:
        (c, a), (d, b) = table[0, 1], table[1, 1]  # a of n in group 0, b of m in group 1
        n, m = a + c, b + d
        if n == 0 or m == 0:
            continue
        total = n + m
        top += (a * m - b * n) / total
        bottom += n * m / total
        p_sum += b * (n / total) ** 2 - a * (m / total) ** 2 + (n / total) * (m / total) * (m - n) / 2
        q_sum += (a * (m - b) / total + b * (n - a) / total) / 2
    found = decompose("tpr", tables.sum(axis=0), terms, 0, 1, minimum=1)
    if bottom == 0:
        assert (found.within.value, found.within.reason) == (None, "no hospital has both groups")
        return
    assert found.within.value == pytest.approx(top / bottom, abs=1e-12)
    variance = (top / bottom * p_sum + q_sum) / bottom**2
    half = 1.959964 * max(variance, 0) ** 0.5
    low, high = max(top / bottom - half, -1), min(top / bottom + half, 1)
    assert (found.within.low, found.within.high) == pytest.approx((low, high), abs=1e-6)
    assert found.pooled.value == pytest.approx(found.within.value + found.composition, abs=1e-12)  # type: ignore[operator]


def test_a_site_with_one_group_has_no_weight_and_is_not_counted() -> None:
    one = hospital((50, 0), (0.5, 0.5))
    assert stratum_terms("tpr", one, 0, 1).tolist() == [0] * len(TERMS)
    two = hospital((50, 50), (0.5, 0.6))
    terms = stratum_terms("tpr", one, 0, 1) + stratum_terms("tpr", two, 0, 1)
    found = decompose("tpr", one + two, terms, 0, 1)
    assert found.sites == 1
    assert found.within.value == pytest.approx(-0.1)


@pytest.mark.parametrize(("sites", "size"), [(30, 8), (4, 80)])
@pytest.mark.parametrize("variance", [0.0, 2.0])
def test_intervals_within_hospitals_cover(sites: int, size: int, variance: float) -> None:
    if variance and size < 20:
        pytest.skip("a hospital of eight patients has more noise than patients")
    rng = np.random.default_rng(0)
    base = np.linspace(0.4, 0.8, sites)
    covered, repeats = 0, 200
    for _ in range(repeats):
        tables = np.zeros((sites, 3, 2, 2), dtype=np.int64)
        sizes = np.stack([rng.integers(size // 2, size, sites), rng.integers(size // 2, size, sites)], axis=-1)
        hits = np.stack([rng.binomial(sizes[:, 0], base), rng.binomial(sizes[:, 1], base + 0.1)], axis=-1)
        tables[:, :2, 1, 1], tables[:, :2, 1, 0] = hits, sizes - hits
        tables += np.rint(rng.normal(0, variance**0.5, tables.shape)).astype(np.int64)
        terms = sum(stratum_terms("tpr", table, 1, 0, variance) for table in tables)
        found = decompose("tpr", tables.sum(axis=0), terms, 1, 0, noise=sites * variance)
        covered += found.within.low <= 0.1 <= found.within.high  # type: ignore[operator]
    assert covered >= 0.93 * repeats
    assert (found.within.noise_sd > 0) == (variance > 0)  # type: ignore[operator]
