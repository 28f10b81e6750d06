"""BMFT: the hard mask, its two phases, its private form, and the errors of the public code that it does not share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.common.cells import bias_value, bias_weights, task_weights
from equipoise.common.errors import StudyError
from equipoise.common.layout import Layout
from equipoise.common.methods import METHODS, control_of, resolve
from equipoise.common.methods.bmft import Bmft, _courses, _phases, hard_mask
from equipoise.common.private_step import round_weights
from tests.driving import drive, parts_of, private_town, town
from tests.tiny import declare, network

LAYOUT = Layout({"extractor.a": (2, 2), "extractor.b": (2,), "head.weight": (1, 2), "head.bias": (1,)})
BIAS = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 3.0, 9.0, 9.0, 9.0])
TASK = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0])


def masked(percentile: float, **changes: object) -> dict[str, np.ndarray]:
    how = {"granularity": "parameter", "scaling": "mean", "floor": 1e-9, **changes}
    found = hard_mask(LAYOUT, "head.", BIAS, TASK, percentile=percentile, **how)  # type: ignore[arg-type]
    return dict(found.values)


def test_the_mask_frees_the_ratios_above_the_percentile_and_never_the_head() -> None:
    # Ratios of the scaled sensitivities: a 0.4 0.8 1.2 1.6 (mean 2.5 over it), b 0.5 1.5; their median is 1.0.
    found = masked(50)
    np.testing.assert_array_equal(found["extractor.a"], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(found["extractor.b"], [0, 1])
    assert not found["head.weight"].any()
    assert not found["head.bias"].any()  # though the head's own ratios are the largest of all


@pytest.mark.parametrize(("percentile", "free"), [(0, 5), (50, 3), (80, 1), (100, 0)])
def test_the_percentile_says_how_many_are_free(percentile: float, free: int) -> None:
    assert sum(int(value.sum()) for value in masked(percentile).values()) == free


def test_a_mask_by_tensor_keeps_what_the_percentile_says() -> None:
    # In the public code every layer is set to 1, whatever the threshold.
    bias, task = np.array([3.0, 1.0, 8.0, 8.0]), np.array([1.0, 1.0, 1.0, 1.0])
    found = hard_mask(
        LAYOUT, "head.", bias, task, granularity="tensor", scaling="mean", floor=1e-9, percentile=50
    ).values
    assert (found["extractor.a"] == 1).all()
    assert (found["extractor.b"] == 0).all()


@pytest.mark.parametrize("scaling", ["mean", "minmax"])
def test_a_constant_tensor_gives_numbers_and_spares_the_other_tensors(scaling: str) -> None:
    # In the public code it gives NaN, the percentile of NaN is NaN, and the whole mask 0.
    bias = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 1.0, 1.0, 1.0])
    task = np.array([1.0, 2.0, 2.5, 1.0, 7.0, 7.0, 1.0, 1.0, 1.0])
    found = hard_mask(
        LAYOUT, "head.", bias, task, granularity="parameter", scaling=scaling, floor=1e-9, percentile=50
    ).values
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["extractor.a"].any()


def sensitivities_by_hand(seed_people: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Sums over patients of squared gradients of bias[c] p and task[c] CE, by autograd, one patient at a time."""
    place = town("bmft", seed=seed_people)
    split, model = place.people.split(range(60)), network()
    cell = 2 * split.groups["sex"] + split.label
    counts = np.bincount(cell, minlength=6).reshape(3, 2).astype(float)
    mean_scores = np.zeros(60)
    for i in range(60):
        mean_scores[i] = torch.sigmoid(model(split.inputs[split.patient == i])).mean().item()
    scores = np.bincount(cell, weights=mean_scores, minlength=6).reshape(3, 2)
    task = task_weights(counts, "cells", 4.0).reshape(-1)
    bias = bias_weights(counts, scores, "equalized_odds", "absolute", 0.08).reshape(-1)
    found = []
    for which in ("bias", "task"):
        total = None
        for i in range(60):
            model.zero_grad()
            z = model(split.inputs[split.patient == i])
            if which == "bias":
                loss = bias[cell[i]] * torch.sigmoid(z).mean()
            else:
                y = split.label[i].float().expand_as(z)
                loss = task[cell[i]] * torch.nn.functional.binary_cross_entropy_with_logits(z, y)
            loss.backward()
            squares = np.concatenate([p.grad.double().numpy().ravel() ** 2 for p in model.parameters()])
            total = squares if total is None else total + squares
        found.append(total)
    return found[0], found[1]


def test_a_run_uses_the_mask_of_the_patients_sensitivities() -> None:
    place = town("bmft", rounds={"impair": 1, "repair": 0})
    done = place.run()
    sent = next(total for total in done.sums if total.query.name == "local_training").query.inputs["mask"]
    bias, task = sensitivities_by_hand()
    layout = place.model.layout("extractor")
    byhand = hard_mask(
        place.model.layout(), "head.", bias, task, granularity="parameter", scaling="mean", floor=0.05, percentile=50
    )
    for name in layout.shapes:
        np.testing.assert_array_equal(sent[name], byhand.values[name], err_msg=name)
    share = layout.flatten(sent).mean()
    assert 0.45 < share < 0.55


def test_what_is_masked_neither_moves_nor_decays_and_the_head_rests() -> None:
    # In the public code weight decay is added after the mask, and shrinks masked weights and the head.
    place = town("bmft", rounds={"impair": 2, "repair": 0}, head_reset="none", weight_decay=0.1, impair_lr=0.05)
    done = place.run(*parts_of(60))
    mask = done.named("local_training")[0].query.inputs["mask"]
    before, after = place.model.state, done.outcome.classifier.state
    for name, values in mask.items():
        held = np.asarray(values) == 0
        assert (after[name][held] == before[name][held]).all(), name
    assert any((after[name] != before[name]).any() for name in mask)
    assert all((after[name] == before[name]).all() for name in place.model.layout("head").shapes)


def test_impair_is_the_bias_loss_alone_on_scores_that_are_sigmoids_of_the_logit_once() -> None:
    # One full-gradient step against autograd on the pooled patients. The public head ends in a sigmoid and the loss
    # takes another, which would leave scores between 0.5 and 0.73.
    place = town(
        "bmft", step="full_gradient", mask="ones", rounds={"impair": 1, "repair": 0}, head_reset="none", impair_lr=0.5
    )
    done = place.run(*parts_of(60))
    split, model = place.people.split(range(60)), network()
    z = model(split.inputs)
    rows = torch.bincount(split.patient)[split.patient]
    p = torch.zeros(60).index_add(0, split.patient, torch.sigmoid(z) / rows)
    sex, label = split.groups["sex"], split.label
    gaps = [p[(sex == 0) & (label == y)].mean() - p[(sex == 1) & (label == y)].mean() for y in (0, 1)]
    signs = [float(np.clip(gap.item() / 0.08, -1, 1)) for gap in gaps]
    loss = 0.5 * sum(sign * gap for sign, gap in zip(signs, gaps, strict=True))
    gradient = torch.autograd.grad(loss, [model.get_parameter(n) for n in place.model.layout("extractor").shapes])
    for (name, _), expected in zip(place.model.layout("extractor").shapes.items(), gradient, strict=True):
        moved = done.outcome.classifier.state[name] - place.model.state[name]
        np.testing.assert_allclose(moved, -0.5 * expected.numpy(), atol=2e-6)


def test_repair_starts_from_a_head_of_zeros_and_trains_nothing_else() -> None:
    place = town("bmft", rounds={"impair": 0, "repair": 1})
    done = place.run()
    first = done.named("local_training")[0].query
    assert set(first.parameters["tensors"]) == {"head.weight", "head.bias"}
    assert not any(first.inputs["model.head"][name].any() for name in ("head.weight", "head.bias"))
    # task + 0.1 bias is the mix of shares 1 / 1.1 and 0.1 / 1.1, at 1.1 times the rate.
    assert first.parameters["beta"] == pytest.approx(1 / 1.1)
    assert first.parameters["lr"] == pytest.approx(0.11)
    before, after = place.model.state, done.outcome.classifier.state
    assert all((after[name] == before[name]).all() for name in place.model.layout("extractor").shapes)
    assert (after["head.weight"] != 0).any()


def test_full_gradient_rounds_are_the_same_for_every_partition() -> None:
    place = town("bmft", step="full_gradient", rounds={"impair": 2, "repair": 2}, impair_lr=0.1, percentile=30)
    together, apart = place.run(), place.run(*parts_of(60, 4))
    for name, value in together.outcome.classifier.state.items():
        np.testing.assert_allclose(apart.outcome.classifier.state[name], value, rtol=1e-5, atol=1e-6)
    assert together.outcome.notes["mask"] == apart.outcome.notes["mask"]


def test_a_site_without_a_group_is_no_group_of_mean_zero() -> None:
    # In the public code an absent cell has mean 0: a batch of one group lowers every score.
    place = town("bmft", rounds={"impair": 1, "repair": 0}, step="full_gradient")
    sexes = place.people.sex
    apart = place.run(np.flatnonzero(sexes == 0), np.flatnonzero(sexes != 0))
    np.testing.assert_allclose(
        place.model.layout().flatten(apart.outcome.classifier.state),
        place.model.layout().flatten(place.run().outcome.classifier.state),
        atol=1e-6,
    )


def test_controls() -> None:
    place = town("bmft", controls=["no_mask", "permuted", "plain", "balanced", "head"])
    resolve(place.study)
    done = place.run()
    permuted = control_of(place.study, "permuted")
    assert permuted is not None
    mask = town("bmft", **permuted.method.parameters).run().named("local_training")[0].query.inputs["mask"]
    own = done.named("local_training")[0].query.inputs["mask"]
    flat = [place.model.layout("extractor").flatten(values) for values in (own, mask)]
    assert flat[0].sum() == flat[1].sum()
    assert (flat[0] != flat[1]).any()


def test_repair_knows_that_a_head_of_zeros_has_no_gap() -> None:
    done = town("bmft", rounds={"impair": 1, "repair": 1}).run(*parts_of(60))
    impair, repair = (total.query.inputs["weights"] for total in done.named("local_training"))
    assert bias_value(impair["patients"], impair["scores"], "equalized_odds") > 0.005
    np.testing.assert_array_equal(repair["scores"], 0.5 * repair["patients"])
    assert repair["patients"].sum() == 60
    # It is what the sites find there: the gradient of the bias loss is 0 too.
    whole = town("bmft", step="full_gradient", rounds={"impair": 1, "repair": 1}).run(*parts_of(60))
    assert np.abs(whole.named("gradient_sum")[1].query.inputs["weights"]["bias"]).max() < 1e-12
    # Without a reset the gap is that of the last release.
    kept = town("bmft", head_reset="none", rounds={"impair": 1, "repair": 1}).run(*parts_of(60))
    first, second = kept.named("local_training")
    np.testing.assert_array_equal(second.query.inputs["weights"]["scores"], first.value("scores"))


# --- the private form

W = {"rounds": 3, "directions": 8, "rank": 2, "accept_poor_pool": True}
HEAD = {"rounds": 2, "directions": 5, "accept_poor_pool": True}


def test_the_first_round_of_impair_knows_no_gap_and_moves_nothing(tmp_path: Path) -> None:
    # Its sum is noise alone, and the rate is largest there.
    place = private_town(tmp_path, "bmft", epsilon=50.0, count=150, whitened=W, whitened_head=HEAD)
    study = declare(place.study, {"a": 150})
    rounds = drive(study, place.sites(range(150)), place.model).named("whitened_gradient")[:3]
    assert rounds[0].value("gradient").any()
    first, second, third = (total.query.inputs["model.extractor"] for total in rounds)
    assert all((second[name] == value).all() for name, value in first.items())
    assert any((third[name] != value).any() for name, value in first.items())


def test_repair_minimises_the_same_sum_in_both_forms() -> None:
    # L_task + share * L_bias, whose weights whitened rounds double; the rate counts for the whole sum in both.
    p = Bmft(bias_share=0.6)
    counts = np.array([[30.0, 20.0], [20.0, 30.0], [0.0, 0.0]])
    scores = counts * np.array([[0.2, 0.6], [0.4, 0.9], [0.0, 0.0]])
    _, (rounds, _) = _courses(p)
    task, bias = round_weights(counts, scores)
    np.testing.assert_allclose(rounds.lr * rounds.beta * task, p.whitened_head.lr * task)
    single = bias_weights(counts, scores, "equalized_odds")
    np.testing.assert_allclose(rounds.lr * (1 - rounds.beta) * bias, p.whitened_head.lr * 0.6 * single)
    _, phase = _phases(town("bmft").study, p)
    assert (phase.steps.lr * phase.beta, phase.steps.lr * (1 - phase.beta)) == pytest.approx((0.1, 0.06))


def test_a_percentile_that_frees_nothing_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    place = private_town(tmp_path, "bmft", percentile=100.0)
    with pytest.raises(StudyError, match="percentile=100: frees no tensor"):
        METHODS["bmft"].plan(place.study, place.model)
