"""The classifier as a method sees it: what changed, what travels, what arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.classifier import Classifier, state_from_inputs
from equipoise.common.query import Query
from equipoise.common.wire import pack_bundles, split_bundles, unpack
from tests.tiny import classifier_of, make_study, weights_file


def model_of(factory: str = "small", dtype: torch.dtype = torch.float32) -> Classifier:
    file = weights_file(factory, dtype=dtype)
    return classifier_of(make_study(file=file, factory=factory), file)


def test_parts_make_up_the_whole() -> None:
    model = model_of()
    whole, extractor, head = (model.layout(part) for part in ("whole", "extractor", "head"))
    assert list(extractor.shapes) + list(head.shapes) == list(whole.shapes) == list(model.parameters)
    assert list(head.shapes) == ["head.weight", "head.bias"]
    assert whole.size == 149


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_is_added_in_double_and_kept_in_the_weights_own_precision(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    layout = model.layout("head")
    moved = model.moved(layout, np.arange(1.0, 8.0) / 7)
    expected = model.base["head.weight"].astype(np.float64).ravel() + np.arange(1.0, 7.0) / 7
    assert (moved.state["head.weight"].ravel() == expected.astype(model.base["head.weight"].dtype)).all()
    assert moved.state["head.weight"].dtype == model.base["head.weight"].dtype
    assert set(moved.changed) == {"head.weight", "head.bias"}
    assert (model.state["head.weight"] == model.base["head.weight"]).all()  # the first classifier is as it was
    back = moved.moved(layout, -np.arange(1.0, 8.0) / 7)
    np.testing.assert_allclose(back.state["head.weight"], model.base["head.weight"], atol=1e-6)


def test_only_what_changed_travels() -> None:
    model = model_of()
    assert set(model.inputs()) == {"model.base"}
    head = model.moved(model.layout("head"), np.ones(7))
    assert set(head.inputs("after")) == {"after.base", "after.head"}
    both = head.moved(model.layout("extractor"), np.ones(142))
    assert set(both.inputs()) == {"model.base", "model.extractor", "model.head"}
    query = Query("q", "patient_sum", "train", "p", {}, {})
    digests = [query.with_inputs(**one.inputs()).input_digests for one in (model, head, both)]
    assert len({digest["model.base"] for digest in digests}) == 1
    assert digests[1]["model.head"] == digests[2]["model.head"]


@pytest.mark.parametrize("factory", ["small", "conv", "scaled"])
def test_a_site_receives_the_state_that_was_sent(factory: str) -> None:
    model = model_of(factory)
    moved = model.moved(model.layout(), np.random.default_rng(0).normal(size=model.layout().size))
    for one in (model, moved):
        sent = pack_bundles({"protocol": 1}, one.inputs())
        received = state_from_inputs(split_bundles(unpack(sent)[1]))
        assert set(received) == set(one.state)
        for name, value in one.state.items():
            assert received[name].shape == value.shape
            assert received[name].dtype == value.dtype
            assert (received[name] == value).all()


def test_values_take_the_place_of_others() -> None:
    model = model_of()
    zero = model.with_values({"head.bias": np.zeros(1, dtype=np.float64)})
    assert zero.state["head.bias"].tolist() == [0]
    assert zero.state["head.bias"].dtype == np.float32
    assert (zero.state["head.weight"] == model.base["head.weight"]).all()
