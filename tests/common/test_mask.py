"""The soft mask: hand-computed values, its range, its controls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, Scaling, SoftMask, scale, units

LAYOUT = Layout({"conv": (2, 3), "bias": (2,), "one": (1,), "scalar": ()})
GRANULARITIES: list[Granularity] = ["parameter", "channel", "tensor"]


def test_units_of_each_granularity() -> None:
    assert units(LAYOUT, "parameter") == {"conv": 6, "bias": 2, "one": 1, "scalar": 1}
    assert units(LAYOUT, "channel") == {"conv": 2, "bias": 2, "one": 1, "scalar": 1}
    assert units(LAYOUT, "tensor") == {"conv": 1, "bias": 1, "one": 1, "scalar": 1}


def test_min_max_is_the_published_one() -> None:
    scaled = scale({"t": np.array([2.0, 4, 6]), "same": np.array([3.0, 3])}, "minmax")
    np.testing.assert_allclose(scaled["t"], np.array([0, 2, 4]) / (4 + 1e-10))
    assert scaled["same"].tolist() == [3, 3]  # a constant tensor stays raw
    single = scale({"t": np.array([2.0, 4]), "one": np.array([0.5])}, "minmax")
    assert single["one"].tolist() == [0.5]


def test_scaling_by_the_mean_ignores_the_unit_of_a_tensor() -> None:
    energies = {"t": np.array([1.0, 3]), "u": np.array([5.0, 0, 10])}
    for name, scaled in scale(energies, "mean").items():
        assert scaled.mean() == pytest.approx(1)
        np.testing.assert_allclose(scale({**energies, name: 1e-9 * energies[name]}, "mean")[name], scaled)


@pytest.mark.parametrize("scaling", ["mean", "minmax"])
def test_single_units_are_scaled_over_the_model(scaling: Scaling) -> None:
    scaled = scale({"a": np.array([1.0]), "b": np.array([3.0])}, scaling)
    assert (scaled["a"][0], scaled["b"][0]) == (0.5, 1.5)


def test_hand_computed_mask() -> None:
    layout = Layout({"a": (2,), "b": (3, 1)})
    bias, task = np.array([6.0, 2.0]), np.array([1.0, 3.0])
    mask = SoftMask.from_sensitivities(layout, bias, task, "tensor", "mean", 0.05)
    np.testing.assert_allclose(mask.values["a"], np.tanh(1.5 / (0.5 + 0.05)))
    np.testing.assert_allclose(mask.values["b"], np.full((3, 1), np.tanh(0.5 / (1.5 + 0.05))))
    assert mask.values["b"].shape == (3, 1)
    rows = mask.summary()
    assert [(row["tensor"], row["parameters"]) for row in rows] == [("a", 2), ("b", 3)]
    assert mask.mean == pytest.approx((2 * np.tanh(1.5 / 0.55) + 3 * np.tanh(0.5 / 1.55)) / 5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scaling", ["mean", "minmax"])
@given(data=st.data())
def test_a_mask_lies_in_the_unit_interval_and_has_the_models_shapes(
    granularity: Granularity, scaling: Scaling, data: st.DataObject
) -> None:
    size = sum(units(LAYOUT, granularity).values())
    bias, task = (data.draw(arrays(np.float64, size, elements=st.floats(0, 1e6))) for _ in range(2))
    mask = SoftMask.from_sensitivities(LAYOUT, bias, task, granularity, scaling, 0.05)
    for name, shape in LAYOUT.shapes.items():
        assert mask.values[name].shape == shape
        assert np.isfinite(mask.values[name]).all()
        assert ((mask.values[name] >= 0) & (mask.values[name] <= 1)).all()


def test_each_unit_reaches_its_own_parameters() -> None:
    bias = np.array([1.0, 9, 2, 2, 1, 1])
    mask = SoftMask.from_sensitivities(LAYOUT, bias, np.ones(6), "channel", "mean", 0.05)
    rows = mask.values["conv"]
    assert (rows == rows[:, :1]).all()
    assert (rows[1] > rows[0]).all()
    per_parameter = np.arange(10.0)
    mask = SoftMask.from_sensitivities(LAYOUT, per_parameter, np.ones(10), "parameter", "mean", 0.05)
    assert (np.diff(mask.values["conv"].ravel()) > 0).all()


def test_more_bias_opens_and_more_task_closes() -> None:
    layout = Layout({"a": (1,), "b": (1,)})

    def opening(bias: float, task: float) -> float:
        pair = np.array([bias, 1.0]), np.array([task, 1.0])
        return float(SoftMask.from_sensitivities(layout, *pair, "tensor", "mean", 0.05).values["a"][0])

    assert opening(2, 1) > opening(1, 1) > opening(1, 2)
    assert opening(0, 1) == 0


MASK = SoftMask({"a": np.array([[0.1, 0.9], [0.4, 0.2]]), "b": np.array([0.7]), "c": np.array(0.3)})


def test_controls_keep_what_they_should() -> None:
    constant = MASK.constant()
    assert constant.mean == pytest.approx(MASK.mean) == pytest.approx(2.6 / 6)
    assert len({float(v) for value in constant.values.values() for v in np.ravel(value)}) == 1
    ones = SoftMask.ones(Layout({"a": (2, 2)}))
    assert (ones.values["a"] == 1).all()
    permuted = MASK.permuted(np.random.default_rng(0))
    flat = [np.concatenate([np.ravel(v) for v in mask.values.values()]) for mask in (MASK, permuted)]
    assert sorted(flat[0]) == sorted(flat[1])
    assert (flat[0] != flat[1]).any()
    assert {n: v.shape for n, v in permuted.values.items()} == {n: v.shape for n, v in MASK.values.items()}
    again = MASK.permuted(np.random.default_rng(0))
    assert all((again.values[name] == permuted.values[name]).all() for name in again.values)


def test_above_the_mean_and_never_where_all_are_equal() -> None:
    assert MASK.above_mean("a").tolist() == [[False, True], [False, False]]
    assert not MASK.above_mean("b").any()
    for value in np.random.default_rng(1).random(200):
        for size in (1, 5, 64, 96, 512):
            assert not SoftMask({"x": np.full((1, size), value)}).above_mean("x").any()


def test_no_sensitivity_at_all_holds_everything() -> None:
    for scaling in ("mean", "minmax"):
        mask = SoftMask.from_sensitivities(LAYOUT, np.zeros(10), np.zeros(10), "parameter", scaling, 0.05)
        assert mask.mean == 0


def test_a_layout_flattens_and_splits() -> None:
    vector = np.arange(10.0)
    parts = LAYOUT.split(vector)
    assert {name: part.shape for name, part in parts.items()} == dict(LAYOUT.shapes)
    assert (LAYOUT.flatten(parts) == vector).all()
    assert LAYOUT.size == 10
    assert "bias" in LAYOUT
    assert "other" not in LAYOUT
    assert Layout({}).flatten({}).shape == (0,)
