"""Queries: what is in a digest, what a plan sees, what may be sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from equipoise.common import catalogue
from equipoise.common.canonical import canonical_json, digest_arrays, digest_json
from equipoise.common.errors import RefusedError
from equipoise.common.methods import METHODS, resolve
from equipoise.common.query import Block, Query, Sum
from tests.tiny import classifier_of, declare, make_study, weights_file

QUERY = Query(
    "q",
    "patient_sum",
    "train",
    "phase",
    {"beta": 0.5, "tensors": ["a", "b"]},
    {"x": Block.real((2, 3), 1.5, 100), "n": Block.counts((2,))},
    {"model": {"w": np.arange(4.0)}},
)


def test_the_digest_covers_everything() -> None:
    changes: list[dict[str, Any]] = [
        {"name": "r"},
        {"kind": "site_update"},
        {"split": "test"},
        {"phase": "other"},
        {"parameters": {"beta": 0.25, "tensors": ["a", "b"]}},
        {"parameters": {"beta": 0.5, "tensors": ["b", "a"]}},
        {"blocks": {"x": QUERY.blocks["x"]}},
        {"blocks": {**QUERY.blocks, "n": Block.counts((3,))}},
        {"inputs": {}},
        {"inputs": {"other": QUERY.inputs["model"]}},
        {"inputs": {"model": {"w": np.arange(4.0, dtype=np.float32)}}},
        {"inputs": {"model": {"w": np.arange(4.0).reshape(2, 2)}}},
        {"inputs": {"model": {"v": np.arange(4.0)}}},
        {"version": 2},
    ]
    fields = {name: getattr(QUERY, name) for name in Query.__dataclass_fields__}
    digests = [Query(**{**fields, **change}).digest for change in changes]
    assert len({*digests, QUERY.digest}) == len(changes) + 1


def test_the_digest_does_not_cover_where_arrays_lie() -> None:
    wide = (np.arange(8.0) / 2).reshape(4, 2)[:, 0]
    assert not wide.flags["C_CONTIGUOUS"]
    assert digest_arrays({"w": wide}) == digest_arrays({"w": np.array([0.0, 1, 2, 3])})
    both = {"a": np.ones(2), "b": np.zeros(1)}
    assert digest_arrays(both) == digest_arrays(dict(reversed(both.items())))


def test_digests_that_are_known_are_not_worked_out_again() -> None:
    digests = {"model": digest_arrays(QUERY.inputs["model"])}
    assert replace(QUERY, known_digests=digests).digest == QUERY.digest
    assert replace(QUERY, known_digests={"model": "0" * 64}).digest != QUERY.digest


def test_a_query_survives_its_public_form_and_json() -> None:
    again = Query.from_public(json.loads(canonical_json(QUERY.public)), QUERY.inputs)
    assert again.public == QUERY.public
    assert again.digest == QUERY.digest
    assert again.blocks == dict(QUERY.blocks)


def test_json_is_canonical_and_has_no_nan() -> None:
    assert canonical_json({"b": 1, "a": [0.1, "é"]}) == b'{"a":[0.1,"\\u00e9"],"b":1}'
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_contribution_has_the_declared_blocks_and_shapes() -> None:
    good = {"x": np.zeros((2, 3)), "n": np.array([1, 2])}
    points = QUERY.encode(good)
    assert {name: (p.shape, p.dtype) for name, p in points.items()} == {"x": ((2, 3), np.int64), "n": ((2,), np.int64)}
    for wrong in (
        {"x": good["x"]},
        {**good, "more": np.zeros(1)},
        {**good, "x": np.zeros((3, 2))},
        {**good, "n": np.zeros(1)},
    ):
        with pytest.raises(ValueError, match="q"):
            QUERY.encode(wrong)
    for value in (np.nan, np.inf, QUERY.blocks["x"].site_bound * 1.01):
        with pytest.raises(RefusedError, match="nothing was sent"):
            QUERY.encode({**good, "x": np.full((2, 3), value)})


def test_a_sum_reads_counts_exactly_and_values_in_their_unit() -> None:
    points = QUERY.encode({"x": np.full((2, 3), 0.75), "n": np.array([2, 3])})
    total = Sum(QUERY, ("a",), {name: 3 * p for name, p in points.items()})
    assert total.count("n").tolist() == [6, 9]
    assert total.count("n").dtype == np.int64
    np.testing.assert_array_equal(total.value("x"), np.full((2, 3), 2.25))


def test_a_patient_adds_one_to_as_many_cells_as_the_bound_says() -> None:
    assert Block.counts((3, 2)).patient_l2 == 1.0
    assert Block.counts((3, 3, 2, 2, 2), per_patient=3).patient_l2 == pytest.approx(3**0.5)


# What a method asks of a study before it plans.
NEEDED = {"zhang_zhou": {"layers": ["extractor.0.weight"]}, "group_thresholds": {"allow_group_thresholds": True}}


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_repeats_and_prices_what_is_in_the_catalogue(name: str) -> None:
    file = weights_file()
    method = {"name": name, **NEEDED.get(name, {})}
    study = declare(make_study(method, file=file), {"a": 10, "b": 20, "c": 30})
    model = classifier_of(study, file)
    first, second = (resolve(study).plan(study, model) for _ in range(2))
    assert [query.public for query in first] == [query.public for query in second]
    for query in first:
        assert hasattr(catalogue, query.name)
        assert query.inputs == {}
        assert all(block.step > 0 and block.site_bound > 0 and block.patient_l2 > 0 for block in query.blocks.values())
        assert query.split in ("train", "validation")  # never the patients that the result is judged by
