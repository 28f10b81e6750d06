"""FairFed: the global gap, deviations and weights by hand; what the coordinator sees of each hospital."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS
from equipoise.common.methods.fairfed import global_gap, reweighed
from tests.driving import Town, parts_of, town
from tests.tiny import network, private_study

PARTS = parts_of(60)


def decisions_by_hand(place: Town, part: range) -> np.ndarray:
    """counts[g, y, decision] of some patients at a mean score of one half."""
    split, model = place.people.split(part), network()
    with torch.no_grad():
        p = torch.sigmoid(model(split.inputs))
    mean = torch.zeros(len(part)).index_add(0, split.patient, p / torch.bincount(split.patient)[split.patient])
    counts = np.zeros((3, 2, 2))
    for g, y, d in zip(split.groups["sex"], split.label, mean >= 0.5, strict=True):
        counts[int(g), int(y), int(d)] += 1
    return counts


def test_the_weights_by_hand() -> None:
    shares, deviations = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.4, 0.1])
    everyone = np.array([True, True, True])
    # mean D = .2: .5 + .05, .3 - .1, .2 + .05 at beta = .5, already of sum 1.
    np.testing.assert_allclose(reweighed(shares, deviations, everyone, 0.5), [0.55, 0.2, 0.25])
    # At beta = 2 the second falls to .3 - .4 and is held at 0: .7, 0, .4.
    np.testing.assert_allclose(reweighed(shares, deviations, everyone, 2.0), np.array([0.7, 0.0, 0.4]) / 1.1)
    np.testing.assert_allclose(reweighed(shares, deviations, everyone, 0.0), shares)
    # The second did not answer: the mean of the others is .1, and nobody moves.
    np.testing.assert_allclose(reweighed(shares, deviations, np.array([True, False, True]), 2.0), shares)


def test_the_gap_by_hand() -> None:
    counts = np.array([[[30, 10], [5, 15]], [[8, 12], [6, 4]], [[9, 0], [0, 0]]], dtype=float)
    gap, accuracy = global_gap(counts, "equal_opportunity")
    assert gap == pytest.approx(15 / 20 - 4 / 10)
    assert accuracy == pytest.approx((30 + 8 + 9 + 15 + 4) / 99)
    assert global_gap(counts, "demographic_parity")[0] == pytest.approx(25 / 60 - 16 / 30)
    assert global_gap(counts[[0, 2, 1]], "equal_opportunity")[0] == 0.0  # the second group has no positive


@pytest.mark.parametrize("metric", ["equal_opportunity", "demographic_parity"])
def test_a_round_by_hand(metric: str) -> None:
    place = town("fairfed", rounds=1, metric=metric, beta=0.3)
    sexes = place.people.sex
    parts = [np.arange(0, 25), np.arange(25, 60)[sexes[25:] != 0], np.arange(25, 60)[sexes[25:] == 0]]
    done = place.run(*parts)
    everyone = decisions_by_hand(place, range(60))  # type: ignore[arg-type]
    np.testing.assert_array_equal(done.named("cell_decisions")[0].value("patients"), everyone)
    gap, accuracy = global_gap(everyone, metric)  # type: ignore[arg-type]
    expected = []
    for part in parts:
        own = decisions_by_hand(place, part)
        known = own[:2, 1] if metric == "equal_opportunity" else own[:2].sum(axis=1)
        if known.sum(axis=1).min() > 0:
            expected.append(abs(known[0, 1] / known[0].sum() - known[1, 1] / known[1].sum() - gap))
        else:  # the second and third hospital lack a group
            expected.append(abs((own[:, 0, 0].sum() + own[:, 1, 1].sum()) / own.sum() - accuracy))
    np.testing.assert_allclose(done.named("site_deviation")[0].value("deviation"), expected, atol=1e-9)
    declared = np.array([len(part) / 60 for part in parts])
    shares = reweighed(declared, np.array(expected), np.ones(3, dtype=bool), 0.3)
    sent = done.named("local_training")[0].query.inputs["shares"]["shares"]
    np.testing.assert_allclose(sent, shares, atol=1e-9)
    assert np.abs(shares - declared).max() > 0.01


def test_the_average_takes_these_weights() -> None:
    # With whole batches a hospital's change is the same whatever its weight is: the sum is linear in the weights.
    place = town("fairfed", rounds=1, beta=1.0, lr=0.2, batch=1000)
    done = place.run(*PARTS)
    layout = place.model.layout()
    shares = done.named("local_training")[0].query.inputs["shares"]["shares"]
    assert shares.sum() == pytest.approx(1.0)
    alone = [place.run(part).named("local_training")[0].value("change") for part in PARTS]
    moved = layout.flatten(done.outcome.classifier.state) - layout.flatten(place.model.state)
    np.testing.assert_allclose(moved, sum(w * change for w, change in zip(shares, alone, strict=True)), atol=2e-6)


def test_a_hospital_of_weight_0_does_not_stop_the_others_from_being_averaged() -> None:
    place = town("fairfed", rounds=1, beta=0.0)
    done = place.run(*PARTS, absent=lambda number: ["a", "b"] if number == 3 else [])
    layout = place.model.layout()
    moved = layout.flatten(done.outcome.classifier.state) - layout.flatten(place.model.state)
    change = done.named("local_training")[0].value("change")  # of c alone, times its share of one half
    np.testing.assert_allclose(moved, 2 * change, atol=1e-6)


def test_more_than_two_groups_and_private_studies_are_refused() -> None:
    place = town("fairfed")
    with pytest.raises(StudyError, match=r"no private form.*reweighing or group_dro"):
        METHODS["fairfed"].plan(private_study().with_method("fairfed"), place.model)
    three = [{"name": "sex", "levels": ["female", "male", "other"], "primary": True}]
    with pytest.raises(StudyError, match="it compares two groups, and sex has 3"):
        METHODS["fairfed"].plan(town("fairfed", study={"attributes": three}).study, place.model)


def test_a_hospital_of_nobody_keeps_its_weight_of_0() -> None:
    # Its deviation of 0 would else be the best there is, and lower the mean that the others are compared with.
    place = town("fairfed", rounds=3, beta=1.0)
    parts = [[i for i in range(60) if (place.people.sex[i] == 0) == alone] for alone in (True, False)]
    done, two = place.run(*parts, []), place.run(*parts)
    assert done.named("site_deviation")[0].value("deviation")[:2].min() > 0.01
    for with_it, without in zip(done.named("local_training"), two.named("local_training"), strict=True):
        shares = with_it.query.inputs["shares"]["shares"]
        assert shares[2] == 0
        np.testing.assert_allclose(shares[:2], without.query.inputs["shares"]["shares"], atol=1e-6)
    layout = place.model.layout()
    np.testing.assert_allclose(
        layout.flatten(done.outcome.classifier.state), layout.flatten(two.outcome.classifier.state), atol=1e-6
    )
    nobody = np.zeros(2, dtype=bool)
    np.testing.assert_array_equal(reweighed(np.array([0.4, 0.6]), np.zeros(2), nobody, 1.0), [0.4, 0.6])
