"""FairPrune: scores by hand, what is pruned, who counts as better off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from equipoise.common.errors import DataError, StudyError
from equipoise.common.methods import METHODS
from equipoise.common.methods.fairprune import keep, prunable, saliency
from tests.common.test_zhang_zhou import fisher_by_hand
from tests.driving import parts_of, town
from tests.tiny import draw_people, private_study

WEIGHTS = ["extractor.0.weight", "extractor.2.weight", "head.weight"]


def test_scores_and_pruning_by_hand() -> None:
    weights, worse, better = (
        np.array([1.0, -2.0, 3.0, 0.5]),
        np.array([4.0, 1.0, 0.0, 8.0]),
        np.array([1.0, 4.0, 2.0, 1.0]),
    )
    scores = saliency(weights, worse, better, 0.5)
    np.testing.assert_allclose(scores, [1.75, -2.0, -4.5, 0.9375])
    np.testing.assert_array_equal(keep(scores, 0.5), [True, False, False, True])
    np.testing.assert_array_equal(keep(scores, 0.3), [True, True, False, True])  # rounded down: one of four
    assert keep(scores, 0.0).all()


def test_a_run_prunes_the_smallest_scores_of_the_patients_own_curvatures() -> None:
    place = town("fairprune", better_off="male", ratio=0.25)
    done = place.run(*parts_of(60, 4))
    layout = prunable(place.model)
    assert list(layout.shapes) == WEIGHTS  # neither biases nor normalisations
    counts = done.named("cell_counts")[0].value("patients").sum(axis=1)
    fisher = fisher_by_hand(WEIGHTS, rows=False)
    weights = layout.flatten(place.model.state)
    scores = 0.5 * weights**2 * (fisher[0] / counts[0] - 0.33 * fisher[1] / counts[1])
    pruned = layout.flatten(done.outcome.classifier.state) == 0
    assert pruned.sum() == int(0.25 * layout.size)
    assert scores[pruned].max() <= scores[~pruned].min() + 1e-6
    kept = layout.flatten(done.outcome.classifier.state)[~pruned]
    np.testing.assert_array_equal(kept, weights[~pruned])


def test_the_better_off_group_is_the_one_of_the_larger_auc_on_validation() -> None:
    place = town("fairprune", count=400, seed=9)
    done = place.run(*parts_of(400))
    rows = dict(done.outcome.notes["facts"][0]["rows"])
    from equipoise.common.fairness.auc import auc_by_group

    female, male = (e.value for e in auc_by_group(done.named("score_histogram")[0].count("sex"))[:2])
    assert female is not None
    assert male is not None
    expected = ("female", "male") if female > male else ("male", "female")
    assert (rows["better-off group"], rows["worse-off group"]) == expected
    assert done.named("score_histogram")[0].query.split == "validation"


def test_too_few_patients_to_tell_who_is_better_off_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"name the better-off group in method\.better_off"):
        town("fairprune", count=12).run()


def test_groups_of_equal_auc_are_not_better_and_worse_off() -> None:
    people = draw_people(240, 3)
    rows = tuple(torch.full_like(own, 0.9 if ill else -0.9) for own, ill in zip(people.rows, people.label, strict=True))
    with pytest.raises(DataError, match=r"AUC of all groups is the same.*name the better-off group"):
        town("fairprune", people=replace(people, rows=rows)).run()


def test_it_is_the_same_for_every_partition() -> None:
    place = town("fairprune", better_off="female")
    together, apart = place.run().outcome.classifier, place.run(*parts_of(60, 5)).outcome.classifier
    for name, value in together.state.items():
        np.testing.assert_array_equal(apart.state[name], value)


def test_permuted_scores_prune_as_many() -> None:
    own = town("fairprune", better_off="female").run().outcome.classifier
    other = town("fairprune", better_off="female", scores="permuted").run().outcome.classifier
    layout = prunable(own)
    pruned = [layout.flatten(model.state) == 0 for model in (own, other)]
    assert pruned[0].sum() == pruned[1].sum()
    assert (pruned[0] != pruned[1]).any()


def test_it_refuses_a_private_study_and_an_unknown_group() -> None:
    model = town("fairprune").model
    with pytest.raises(StudyError, match=r"no private form.*choose dfr"):
        METHODS["fairprune"].plan(private_study().with_method("fairprune"), model)
    with pytest.raises(StudyError, match=r"no such group; write auto or one of female, male"):
        METHODS["fairprune"].plan(town("fairprune", better_off="men").study, model)
