"""DFR: the federated fit is the pooled one, balanced over cells; C by worst-group accuracy on validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from equipoise.common.classifier import Classifier
from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS
from equipoise.common.methods.dfr import Curve, newton_step, worst_group_accuracy
from tests.driving import Town, file_of, parts_of, town
from tests.tiny import draw_people, network

PEOPLE = draw_people(160, 11, most_rows=1, unknown=0.0)


def features(place: Town) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of the head, labels, and weights that make the cells alike, of the pooled patients."""
    split = place.people.split(range(len(place.people)))
    with torch.no_grad():
        inputs = network().extractor(split.inputs).double().numpy()
    cell = (2 * split.groups["sex"] + split.label).numpy()
    weight = len(cell) / 4 / np.bincount(cell, minlength=4)[cell]
    return inputs, split.label.numpy(), weight


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("c", [1.0, 0.1])
def test_the_fit_is_the_pooled_one_of_a_library(penalty: str, c: float) -> None:
    place = town("dfr", people=PEOPLE, penalty=penalty, inverse_penalties=[c], newton_steps=25)
    done = place.run(*parts_of(160, 4))
    x, y, weight = features(place)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    solver = "liblinear" if penalty == "l1" else "lbfgs"
    oracle = LogisticRegression(penalty=penalty, C=c, solver=solver, tol=1e-9, max_iter=5000, intercept_scaling=1e4)
    oracle.fit((x - mean) / spread, y, sample_weight=weight)
    w = oracle.coef_[0] / spread
    state = done.outcome.classifier.state
    np.testing.assert_allclose(state["head.weight"][0], w, atol=4e-3)
    np.testing.assert_allclose(state["head.bias"][0], oracle.intercept_[0] - w @ mean, atol=4e-3)
    if penalty == "l1" and c == 0.1:
        assert (state["head.weight"] == 0).any()


def test_it_is_the_same_for_every_partition_and_moves_the_head_alone() -> None:
    place = town("dfr", people=PEOPLE, inverse_penalties=[1.0, 0.1])
    together, apart = place.run(), place.run(*parts_of(160, 5))
    for name, value in together.outcome.classifier.state.items():
        np.testing.assert_allclose(apart.outcome.classifier.state[name], value, rtol=1e-5, atol=1e-7)
        if not name.startswith("head."):
            np.testing.assert_array_equal(value, place.model.base[name])


def test_a_hospital_that_lacks_a_group_and_a_class_still_contributes() -> None:
    place = town("dfr", people=PEOPLE, inverse_penalties=[0.3])
    one_cell = (PEOPLE.sex == 0) & (PEOPLE.label == 1)
    apart = place.run(np.flatnonzero(one_cell), np.flatnonzero(~one_cell))
    together = place.run()
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(
            apart.outcome.classifier.state[name], together.outcome.classifier.state[name], rtol=1e-5, atol=1e-7
        )


def test_the_cells_weigh_alike() -> None:
    place = town("dfr", people=PEOPLE, inverse_penalties=[1.0])
    done = place.run(*parts_of(160))
    _, _, weight = features(place)
    total = done.named("head_curve")[0]
    counts = done.named("cell_counts")[0].value("patients")
    by_cell = (total.query.inputs["weights"]["task"] * counts)[:2]
    np.testing.assert_allclose(by_cell, by_cell.mean())
    assert total.value("weight")[0] == pytest.approx(weight.sum())


def test_one_newton_step_by_hand() -> None:
    # Loss (w - 1)^2 + (b + 2)^2 about (0, 0): gradient (-2, 4), Hessian 2 I.
    curve = Curve(5.0, np.array([-2.0, 4.0]), 2 * np.eye(2))
    here = np.zeros(2)
    np.testing.assert_allclose(newton_step(curve, here, 0.0, "l2"), [1.0, -2.0])
    np.testing.assert_allclose(newton_step(curve, here, 2.0, "l2"), [0.5, -2.0])  # (2 + 2) w = 2; the bias is free
    np.testing.assert_allclose(newton_step(curve, here, 0.5, "l1"), [0.75, -2.0])  # the soft threshold of 1 at .25
    np.testing.assert_allclose(newton_step(curve, here, 3.0, "l1"), [0.0, -2.0])


def test_worst_group_accuracy_skips_cells_of_too_few_patients() -> None:
    hist = np.zeros((3, 2, 2), dtype=np.int64)
    hist[0] = [[30, 10], [5, 15]]  # right: 30 of 40 and 15 of 20
    hist[1] = [[12, 8], [9, 0]]  # 12 of 20; 0 of 9 are too few
    hist[2] = [[0, 50], [50, 0]]  # of unknown group
    assert worst_group_accuracy(hist, 0) == pytest.approx(0.6)
    assert np.isnan(worst_group_accuracy(hist // 10, 0))


def test_c_is_the_one_of_the_best_worst_group_accuracy_on_validation() -> None:
    place = town("dfr", people=PEOPLE, inverse_penalties=[1.0, 0.003])
    done = place.run()
    rows = done.outcome.notes["facts"][0]["rows"]
    accuracies = [float(row[-1]) for row in rows]
    chosen = next(i for i, row in enumerate(rows) if "chosen" in row[0])
    assert accuracies[chosen] == max(accuracies)
    assert len(set(accuracies)) == 2
    assert [total.query.split for total in done.named("score_histogram")] == ["validation", "validation"]
    # The model that is returned is the one that was measured.
    measured = done.named("score_histogram")[chosen].query.inputs["model.head"]
    np.testing.assert_array_equal(measured["head.weight"], done.outcome.classifier.state["head.weight"])


def test_a_feature_that_never_varies_is_left_out() -> None:
    dead = network()
    with torch.no_grad():
        dead.extractor[2].weight[0].zero_()
        dead.head.weight[0, 0] = 5.0
    place = town("dfr", people=PEOPLE, inverse_penalties=[1.0], file=file_of(dead))
    assert place.run().outcome.classifier.state["head.weight"][0, 0] == 0


def test_a_head_without_a_bias_is_refused_before_anything_is_asked() -> None:
    # The last of its weights would be taken for the bias, and never penalised.
    model = network()
    model.head = torch.nn.Linear(6, 1, bias=False)
    place = town("dfr")
    with pytest.raises(StudyError, match="head has no bias"):
        METHODS["dfr"].plan(place.study, Classifier.of(file_of(model), model, "head."))
