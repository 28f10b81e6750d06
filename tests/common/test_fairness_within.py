"""Pooled = within + composition: the three cases of the specification, Newcombe's interval by stratum, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.within import decompose


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
    found = decompose("tpr", np.stack(sites), 0, 1, ["a", "b"])
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
    top = bottom = 0.0
    for table in tables:
        (c, a), (d, b) = table[0, 1], table[1, 1]  # a of n in group 0, b of m in group 1
        n, m = a + c, b + d
        if n == 0 or m == 0:
            continue
        total = n + m
        top += (a * m - b * n) / total
        bottom += n * m / total
    found = decompose("tpr", tables, 0, 1, minimum=1)
    if bottom == 0:
        assert (found.within.value, found.within.reason) == (None, "no hospital has both groups")
        return
    assert found.within.value == pytest.approx(top / bottom, abs=1e-12)
    assert found.pooled.value == pytest.approx(found.within.value + found.composition, abs=1e-12)  # type: ignore[operator]


def test_a_site_with_one_group_has_no_weight_and_is_not_counted() -> None:
    one, two = hospital((50, 0), (0.5, 0.5)), hospital((50, 50), (0.5, 0.6))
    found = decompose("tpr", np.stack([one, two]), 0, 1)
    assert found.sites == 1
    assert found.weights.tolist() == [0.0, 1.0]
    assert found.within.value == pytest.approx(-0.1)


def test_one_hospital_alone_has_newcombes_interval_and_no_composition() -> None:
    table = hospital((40, 70), (0.9, 0.7))
    found, pooled = decompose("tpr", table[None], 0, 1), difference("tpr", table, 0, 1)
    assert (found.within.low, found.within.high) == pytest.approx((pooled.low, pooled.high), abs=1e-12)
    assert found.composition == pytest.approx(0.0)
    assert found.composition_interval == pytest.approx((0.0, 0.0), abs=1e-12)


def test_fewer_than_ten_patients_at_hospitals_with_both_groups_are_no_number() -> None:
    few = np.stack([hospital((3, 12), (1.0, 1.0))] * 3)
    found = decompose("tpr", few, 0, 1, ["a", "b"])
    assert (found.within.status, found.composition, found.composition_interval) == ("not_estimable", None, None)
    assert found.within.reason == "a, at hospitals with both groups: 9 positives, 10 needed"
    alone = np.concatenate([few, hospital((300, 0), (1.0, 1.0))[None]])
    assert decompose("tpr", alone, 0, 1).pooled.value == 0.0
    assert decompose("tpr", alone, 0, 1).within.value is None  # 300 elsewhere say nothing of within


def test_patients_who_are_all_alike_leave_an_interval_with_a_width() -> None:
    found = decompose("tpr", np.stack([hospital((4, 12), (1.0, 1.0))] * 3), 0, 1).within
    assert found.value == 0.0
    assert found.low < -0.2 < 0.09 < found.high  # type: ignore[operator]


def drawn(sizes: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """tables[k, g, y, decision] of positives alone, from sizes and rates (2, K)."""
    tables = np.zeros((sizes.shape[1], 3, 2, 2), dtype=np.int64)
    hits = rng.binomial(sizes, rates)
    tables[:, :2, 1, 1], tables[:, :2, 1, 0] = hits.T, (sizes - hits).T
    return tables


@pytest.mark.parametrize(
    ("sizes", "rate"),
    [((4, 12, 3), 0.9), ((3, 10, 5), 0.8), ((2, 5, 20), 0.9), ((10, 30, 10), 0.95)],
    ids=["3 hospitals of 4 and 12", "5 of 3 and 10", "20 of 2 and 5", "10 of 10 and 30"],
)
def test_intervals_of_small_hospitals_cover(sizes: tuple[int, int, int], rate: float) -> None:
    # Sato's interval covers .85, .92, .93 and .94 here.
    few, many, sites = sizes
    rng, repeats = np.random.default_rng(0), 400
    each = np.array([[few] * sites, [many] * sites])
    found = [decompose("tpr", drawn(each, np.full(each.shape, rate), rng), 0, 1).within for _ in range(repeats)]
    assert sum(e.low <= 0 <= e.high for e in found) >= 0.93 * repeats  # type: ignore[operator]
    assert all(e.low < e.high for e in found)  # type: ignore[operator]


@pytest.mark.parametrize(("size", "variance"), [(8, 0.0), (80, 0.0), (80, 2.0)])
def test_intervals_within_hospitals_cover_rates_that_differ(size: int, variance: float) -> None:
    rng, sites, repeats = np.random.default_rng(0), 30 if size < 20 else 4, 200
    base, covered = np.linspace(0.4, 0.8, sites), 0
    for _ in range(repeats):
        tables = drawn(rng.integers(size // 2, size, (2, sites)), np.stack([base, base + 0.1]), rng)
        tables += np.rint(rng.normal(0, variance**0.5, tables.shape)).astype(np.int64)
        found = decompose("tpr", tables, 1, 0, noise=variance)
        covered += found.within.low <= 0.1 <= found.within.high  # type: ignore[operator]
    assert covered >= 0.93 * repeats
    assert (found.within.noise_sd > 0) == (variance > 0)  # type: ignore[operator]


def test_composition_covers_and_excludes_0_by_chance_in_one_of_twenty() -> None:
    rng, repeats = np.random.default_rng(0), 300
    sizes = np.array([[30, 5, 20, 40], [60, 60, 20, 5]])
    for rates, truth in (([0.7] * 4, 0.0), ([0.2, 0.4, 0.7, 0.95], 0.2540)):
        each = [decompose("tpr", drawn(sizes, np.array([rates, rates]), rng), 0, 1) for _ in range(repeats)]
        limits = np.array([found.composition_interval for found in each])
        assert np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1])) >= 0.92


def test_the_width_of_composition_is_what_drawing_all_patients_anew_gives() -> None:
    tables = np.stack([hospital((900, 100), (0.95, 0.94)), hospital((100, 900), (0.70, 0.72))])
    rng, draws = np.random.default_rng(0), []
    for _ in range(400):  # who is treated where is drawn, too
        people = rng.multinomial(tables.sum(), tables.ravel() / tables.sum()).reshape(tables.shape)
        draws.append(decompose("tpr", people, 0, 1).composition)
    low, high = decompose("tpr", tables, 0, 1).composition_interval  # type: ignore[misc]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(draws), rel=0.12)  # type: ignore[arg-type]
