"""GroupDRO: the distribution over cells, its two updates, and that neither an absent group nor noise decides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.common.classifier import Classifier
from equipoise.common.methods import METHODS
from equipoise.common.methods.group_dro import SPREAD, GroupDro, Minimax, onto_simplex
from equipoise.common.methods.reweighted import mean_losses
from equipoise.common.query import Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from tests.driving import parts_of, private_town, town
from tests.tiny import declare, network

COUNTS = np.array([[60.0, 20.0], [15.0, 5.0], [10.0, 0.0]])
LOSSES = np.array([[0.2, 0.4], [0.6, 1.0], [3.0, 0.0]])


def test_the_published_update_by_hand() -> None:
    minimax = Minimax(COUNTS, GroupDro(eta=0.5))
    np.testing.assert_allclose(minimax.q, 0.25)
    minimax.see(LOSSES)
    raised = 0.25 * np.exp(0.5 * LOSSES[:2])
    np.testing.assert_allclose(minimax.q, raised / raised.sum())


def test_the_projected_update_by_hand() -> None:
    # q + eta l = .45 .65 .85 1.25; the three largest stay above their excess (2.75 - 1) / 3 = .5833.
    minimax = Minimax(COUNTS, GroupDro(eta=1.0, update="projected"))
    minimax.see(LOSSES)
    np.testing.assert_allclose(minimax.q, [[0.0, 0.4 / 6], [1.6 / 6, 4 / 6]])


def test_weights_are_q_over_the_share_of_the_cell() -> None:
    minimax = Minimax(COUNTS, GroupDro())
    n = COUNTS.sum()
    np.testing.assert_allclose(minimax.weights[:2], 0.25 * n / COUNTS[:2])
    np.testing.assert_allclose(minimax.weights[2, 0], 0.5 * n / 75)  # of unknown group: the label's average


def test_small_cells_can_be_adjusted_for() -> None:
    minimax = Minimax(COUNTS, GroupDro(eta=1.0, adjustment=2.0))
    minimax.see(np.full((3, 2), 0.5))
    raised = np.exp(2.0 / np.sqrt(COUNTS[:2]))
    np.testing.assert_allclose(minimax.q, raised / raised.sum())


def test_an_empty_cell_takes_no_part_and_its_loss_of_0_moves_nothing() -> None:
    minimax = Minimax(np.array([[60.0, 20.0], [15.0, 0.0], [0.0, 0.0]]), GroupDro(eta=1.0))
    np.testing.assert_allclose(minimax.q, [[1 / 3, 1 / 3], [1 / 3, 0.0]])
    minimax.see(np.array([[0.5, 0.5], [0.5, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(minimax.q, [[1 / 3, 1 / 3], [1 / 3, 0.0]])


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(-5, 5)))
def test_the_projection_is_the_nearest_point_of_the_simplex(point: np.ndarray) -> None:
    found = onto_simplex(point)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1.0)
    # Optimality: no other point of the simplex, hence no corner, is nearer along its direction.
    for corner in np.eye(len(point)):
        assert (point - found) @ (corner - found) <= 1e-9


def test_losses_are_those_of_all_patients_whoever_lacks_a_group() -> None:
    # In the public code a group that is absent from a batch has loss 0, and its q falls.
    place = town("group_dro", rounds=2, step="full_gradient", lr=0.1)
    sexes = place.people.sex
    together = place.run()
    apart = place.run(np.flatnonzero(sexes == 0), np.flatnonzero(sexes == 1), np.flatnonzero(sexes == 2))
    facts = [done.outcome.notes["facts"][0]["rows"] for done in (together, apart)]
    assert facts[0] == facts[1]
    for name, value in together.outcome.classifier.state.items():
        np.testing.assert_allclose(apart.outcome.classifier.state[name], value, rtol=1e-5, atol=1e-6)
    split, model = place.people.split(range(60)), network()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        model(split.inputs), split.label[split.patient].float(), reduction="none"
    ).detach()
    mean = torch.zeros(60).index_add(0, split.patient, entropy / torch.bincount(split.patient)[split.patient])
    cell = 2 * split.groups["sex"] + split.label
    by_hand = np.bincount(cell, weights=mean.clamp(max=4.0).numpy(), minlength=6).reshape(3, 2)
    first = apart.named("cell_losses")[0]
    np.testing.assert_allclose(4.0 * first.value("losses"), by_hand, rtol=1e-5)
    np.testing.assert_array_equal(first.value("patients"), np.bincount(cell, minlength=6).reshape(3, 2))


def test_a_round_weighs_by_the_q_of_its_own_losses_under_the_cap() -> None:
    place = town("group_dro", rounds=2, eta=3.0, weight_cap=1.5)
    done = place.run(*parts_of(60))
    counts = done.named("cell_counts")[0].value("patients")
    minimax = Minimax(counts, GroupDro(eta=3.0))
    rounds = list(zip(done.named("cell_losses"), done.named("local_training"), strict=True))
    for losses, training in rounds:
        n = losses.value("patients")
        minimax.see(np.divide(4.0 * losses.value("losses"), n, out=np.zeros_like(n), where=n > 0))
        expected = np.minimum(np.where(counts > 0, minimax.weights, 0.0), 1.5)
        np.testing.assert_allclose(training.query.inputs["weights"]["task"], expected)
    assert (rounds[1][1].query.inputs["weights"]["task"] == 1.5).any()


def test_a_site_that_drops_out_leaves_means_of_those_who_answered() -> None:
    place = town("group_dro", rounds=1, step="full_gradient")
    done = place.run(*parts_of(60), absent=lambda number: ["c"] if number == 1 else [])
    only = place.run(range(30))  # the patients of a and b alone, whose losses were released
    rows = [d.named("cell_losses")[0] for d in (done, only)]
    np.testing.assert_allclose(rows[0].value("losses"), rows[1].value("losses"))
    np.testing.assert_array_equal(rows[0].value("patients"), rows[1].value("patients"))


def noisy(study: Study, model: Classifier, name: str, values: np.ndarray, rng: np.random.Generator) -> Sum:
    """A release of a sum under the noise that the study's plan gives it."""
    plan = StudyPlan.single("group_dro", METHODS["group_dro"].plan(study, model)).calibrated(study)
    query = next(query for query in plan.arm("group_dro") if query.name == name)
    quiet = Sum(query, tuple(study.sites.declared_patients), {})
    points = (values + rng.normal(0.0, quiet.noise_variance**0.5, values.shape)) / query.plan.step
    return Sum(query, quiet.cohort, {next(iter(query.blocks)): np.rint(points).astype(np.int64)})


@pytest.mark.parametrize("rare", [0, 20, 60])
def test_noise_in_a_rare_cell_does_not_take_q_over(rare: int, tmp_path: Path) -> None:
    # 1,800 patients at six hospitals, epsilon 3: a count has noise of 20 patients, a sum of losses more.
    place = private_town(tmp_path, "group_dro")
    study = declare(place.study, dict.fromkeys("abcdef", 300))
    truth = np.array([[900.0, 150.0], [750.0 - rare, rare], [0.0, 0.0]])
    sums = truth * np.array([0.3, 0.9]) / 4
    rng, largest, of_a_patient = np.random.default_rng(0), [], []
    for _ in range(40):
        counted = noisy(study, place.model, "cell_counts", truth, rng)
        counts = counted.value("patients")
        minimax = Minimax(counts, GroupDro(), counted.noise_variance)
        for _ in range(10):
            losses = noisy(study, place.model, "cell_losses", sums, rng)
            minimax.see(mean_losses(study, losses, counts, SPREAD))
        weights = np.minimum(np.where(counts > 0, minimax.weights, 0.0), 10.0)
        largest.append(minimax.q[1, 1])
        of_a_patient.append((weights * truth).sum() / truth.sum())
    assert np.mean(np.array(largest) > 0.9) < 0.05
    assert np.quantile(of_a_patient, 0.05) > 0.7


def test_a_cell_that_noise_could_have_filled_weighs_what_its_label_does() -> None:
    counts = np.array([[60.0, 40.0], [30.0, 10.0], [6.0, 0.0]])
    minimax = Minimax(counts, GroupDro(), noise=36.0)  # 12 patients are two standard deviations
    np.testing.assert_allclose(minimax.q, [[1 / 3, 1 / 3], [1 / 3, 0.0]])
    minimax.see(np.array([[0.5, 0.5], [0.5, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(minimax.q, [[1 / 3, 1 / 3], [1 / 3, 0.0]])
    assert minimax.weights[1, 1] == pytest.approx(minimax.weights[0, 1]) == pytest.approx(146 / 3 / 40)


def test_a_label_of_few_patients_everywhere_keeps_its_cells() -> None:
    minimax = Minimax(np.array([[60.0, 8.0], [30.0, 6.0], [0.0, 0.0]]), GroupDro(), noise=36.0)
    np.testing.assert_allclose(minimax.q, 0.25)
