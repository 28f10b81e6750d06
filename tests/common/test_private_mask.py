"""What the server reads out of a noisy sum: exact without noise, calibrated with it, the pool's where all is noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from equipoise.common.equalisation import Equalisation, contributions
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.private_mask import PrivateSensitivities, weighted_patients

T, PATIENTS = 8, 400
LAYOUT = Layout({f"tensor{i}": (2, i + 1) for i in range(T)})
ONES = np.ones((2, 2))
SCALES = np.logspace(0, -3, T)


def drawn(images: int, tilt: float, seed: int) -> np.ndarray:
    """(images, T) energies that differ in size and, in a few directions, in where; `tilt` moves their mean."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(99).standard_normal((T, T)))[0][:3]
    where = 1 + (0.5 * rng.standard_normal((images, 3)) + tilt) @ (axes * np.array([[0.5], [0.3], [0.2]]))
    return rng.lognormal(sigma=0.5, size=(images, 1)) * np.maximum(where, 0.05) * SCALES


def case(tilt: float = 0.6, seed: int = 0) -> tuple[Equalisation, np.ndarray, np.ndarray]:
    """Public units, and bias and task energies of patients who differ from the pool."""
    rng = np.random.default_rng(seed)
    public = Equalisation.from_pool(rng.standard_normal(500), drawn(500, 0.0, seed + 1), percentile=100)
    return public, 0.02 * drawn(PATIENTS, tilt, seed + 2), 0.05 * drawn(PATIENTS, -tilt, seed + 3)


def summed(public: Equalisation, bias: np.ndarray, task: np.ndarray) -> np.ndarray:
    cell = np.zeros(len(bias), dtype=np.int64)
    total: np.ndarray = contributions(public.unit, public.kept, bias, task, cell, ONES, ONES).sum(axis=0)
    return total


def read(public: Equalisation, total: np.ndarray, sd: float) -> PrivateSensitivities:
    return PrivateSensitivities.from_total(total, public, sd, (PATIENTS, PATIENTS))


def shares(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Equalised, with mean 1 over tensors."""
    equal: np.ndarray = values / mean
    return equal / equal.mean()


def test_without_noise_the_sums_come_back() -> None:
    """Up to their size: nobody is clipped here, and nothing is shrunk."""
    public, bias, task = case()
    found = read(public, summed(public, bias, task), 0.0)
    np.testing.assert_allclose(found.bias / public.mean[0], shares(bias.sum(axis=0), public.mean[0]), rtol=1e-9)
    np.testing.assert_allclose(found.task / public.mean[1], shares(task.sum(axis=0), public.mean[1]), rtol=1e-9)
    assert found.source == "patients"
    assert found.shift == np.inf
    assert not found.bias_sd.any()
    level = (bias.sum(axis=0) / public.mean[0]).mean() / PATIENTS
    assert found.levels[0] == pytest.approx(level)
    plain = SoftMask.from_sensitivities(LAYOUT, bias.sum(axis=0), task.sum(axis=0), "tensor", "mean", 0.05)
    for name, value in found.mask(LAYOUT).values.items():
        np.testing.assert_allclose(value, plain.values[name], rtol=1e-9)


def scores_of(claimed: float) -> np.ndarray:
    """(truth - estimate) / stated error of all tensors over many draws, where noise of sd 1 was claimed to be another.

    The truth is drawn from the prior, so that the posterior is right on average; levels are large, since their own
    error is not part of what is stated.
    """
    public = case()[0]
    frame, rng = public.directions, np.random.default_rng(5)
    level = np.repeat([1000.0, 1000.0], T)
    patients = 1000 / (public.kept * (public.mean / public.unit)[:, 0])
    t = 1000 / public.spread.mean()
    scores = []
    for _ in range(150):
        truth = frame.T @ (np.sqrt(t * public.spread) * rng.standard_normal(len(public.spread)))
        total = level + truth + rng.standard_normal(2 * T)
        found = PrivateSensitivities.from_total(total, public, claimed, (patients[0], patients[1]))
        ratio = 1 + truth[:T] / (level[:T] / public.kept[0])
        if found.source == "patients":
            scores.append((ratio * public.mean[0] - found.bias) / found.bias_sd)
    assert len(scores) > 100
    return np.concatenate(scores)


def test_stated_errors_are_right_and_those_of_half_or_double_the_noise_are_not() -> None:
    right, half, double = (kstest(scores_of(claimed)[::3], "norm").pvalue for claimed in (1.0, 0.5, 2.0))
    assert right > 1e-3
    assert half < 1e-4
    assert double < 1e-4


def test_the_order_survives_noise_and_not_a_permutation() -> None:
    public, bias, task = case()
    total = summed(public, bias, task)
    clean = shares(bias.sum(axis=0), public.mean[0])
    rng = np.random.default_rng(7)
    right, wrong = [], []
    for _ in range(20):
        noisy = total + rng.standard_normal(2 * T)
        order = np.concatenate([rng.permutation(T), T + rng.permutation(T)])
        for found, into in ((read(public, noisy, 1.0), right), (read(public, noisy[order], 1.0), wrong)):
            into.append(spearmanr(found.bias / public.mean[0], clean).statistic)
    assert np.mean(right) > 0.8
    assert np.nanmean(wrong) < 0.4


def test_shrinking_makes_it_better() -> None:
    public, bias, task = case(tilt=0.2)
    total, clean = summed(public, bias, task), shares(bias.sum(axis=0), public.mean[0])
    rng = np.random.default_rng(8)
    shrunk, raw = [], []
    for _ in range(40):
        noisy = total + 3 * rng.standard_normal(2 * T)
        shrunk.append(np.square(read(public, noisy, 3.0).bias / public.mean[0] - clean).mean())
        raw.append(np.square(read(public, noisy, 0.0).bias / public.mean[0] - clean).mean())
    assert np.mean(shrunk) < 0.6 * np.mean(raw)


def test_where_all_is_noise_the_mask_is_the_pools() -> None:
    """Mostly to the bit; else close to it, and far closer than the noise taken at its word."""
    public, bias, task = case(tilt=0.0)
    level = summed(public, bias, task)
    level -= public.directions.T @ (public.directions @ level)
    alone = PrivateSensitivities.from_pool(public)
    expected = LAYOUT.flatten(alone.mask(LAYOUT).values)
    rng = np.random.default_rng(9)
    sources, off, unshrunk = [], [], []
    for _ in range(100):
        noisy = level + 5 * rng.standard_normal(2 * T)
        found = read(public, noisy, 5.0)
        sources.append(found.source)
        off.append(np.abs(LAYOUT.flatten(found.mask(LAYOUT).values) - expected).mean())
        unshrunk.append(np.abs(LAYOUT.flatten(read(public, noisy, 0.0).mask(LAYOUT).values) - expected).mean())
        if found.source == "pool":
            assert off[-1] == 0
            assert found.shift == 0
            assert found.levels == (1.0, 1.0)
    assert sources.count("pool") > 40
    assert np.mean(off) < 0.25 * np.mean(unshrunk)


@pytest.mark.parametrize("level", [-50.0, -1.0, 0.0, 1e-3])
def test_a_level_that_noise_turned_over_does_not_divide(level: float) -> None:
    """The prior keeps it above 0 and of a likely size; without noise there is no prior, and the pool stands in."""
    public, bias, task = case()
    total = summed(public, bias, task)
    others = public.directions.T @ (public.directions @ total)
    total = others + level * np.repeat([1.0, 1.0], T)
    found = read(public, total, 1.0)
    assert found.source == "patients"
    assert 0.001 < min(found.levels) < 1.5
    assert np.isfinite(found.bias).all()
    assert (found.bias >= 0).all()
    assert read(public, total, 0.0).source == ("pool" if level <= 0 else "patients")


def test_an_uncertain_denominator_is_held_at_its_own_error() -> None:
    """A task sensitivity of 0 +- 0.5 of the mean counts as 1.0."""
    task = np.array([1.0, 0.0])
    found = PrivateSensitivities(np.ones(2), task, np.zeros(2), np.array([0.0, 0.5]), "patients", (1.0, 1.0), 1.0)
    mask = found.mask(Layout({"a": (3,), "b": ()}), floor=0.05)
    np.testing.assert_allclose(mask.values["b"], np.tanh(1 / 1.05))
    np.testing.assert_allclose(mask.values["a"], np.full(3, np.tanh(1 / 1.05)))


def test_nobody_or_nothing_to_compare() -> None:
    public, bias, task = case()
    total = summed(public, bias, task)
    nobody = PrivateSensitivities.from_total(np.zeros(2 * T), public, 0.0, (0.0, 0.0))
    one_group = PrivateSensitivities.from_total(total, public, 1.0, (0.0, PATIENTS))
    for found in (nobody, one_group, read(public, np.zeros(2 * T), 1.0)):
        assert found.source == "pool"
        np.testing.assert_array_equal(found.bias, public.mean[0])
        assert found.summary()["source"] == "pool"
    single = Equalisation.from_pool(np.zeros(3), np.array([[1.0], [2.0], [3.0]]))
    assert PrivateSensitivities.from_total(np.ones(2), single, 1.0, (5.0, 5.0)).source == "pool"


@pytest.mark.parametrize(
    ("total", "sd"),
    [(np.zeros(3), 1.0), (np.full(2 * T, np.nan), 1.0), (np.zeros(2 * T), -1.0), (np.zeros(2 * T), np.inf)],
)
def test_what_is_no_release(total: np.ndarray, sd: float) -> None:
    with pytest.raises(ValueError, match="noise_sd"):
        read(case()[0], total, sd)


def test_another_number_of_tensors() -> None:
    found = PrivateSensitivities.from_pool(case()[0])
    with pytest.raises(ValueError, match="must agree"):
        found.mask(Layout({"a": (3,)}))


def test_weighted_patients() -> None:
    counts = np.array([[10.0, -2.0], [4.0, 1.0]])
    assert weighted_patients(counts, np.array([[0.5, 1.0], [0.0, 1.0]]), ONES) == (6.0, 15.0)
