"""Zhang & Zhou: per-patient Fisher sums, neutralising, ranks, and rounds in which only factors travel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.classifier import Classifier, state_from_inputs
from equipoise.common.errors import StudyError
from equipoise.common.factors import factorise
from equipoise.common.methods import METHODS, resolve
from equipoise.common.methods.zhang_zhou import neutralised, rank_of, wide_layers
from equipoise.common.models import resnet_small
from equipoise.common.space import Space
from tests.driving import file_of, parts_of, town
from tests.tiny import draw_people, make_study, network

LAYERS = ["extractor.0.weight", "extractor.2.weight"]
HOW = {"layers": LAYERS, "ranks": [0.25, 0.5], "rounds": 2, "lr": 0.1}


def fisher_by_hand(layers: list[str], rows: bool = True) -> np.ndarray:
    """(3, units): sums over each group's patients of the squared gradient of their own loss, one patient at a time."""
    place = town("zhang_zhou")
    split, model = place.people.split(range(60)), network()
    total = None
    for i in range(60):
        model.zero_grad()
        z = model(split.inputs[split.patient == i])
        torch.nn.functional.binary_cross_entropy_with_logits(z, split.label[i].float().expand_as(z)).backward()
        squares = [model.get_parameter(name).grad.double().numpy() ** 2 for name in layers]
        units = np.concatenate([s.reshape(len(s), -1).sum(axis=1) if rows else s.ravel() for s in squares])
        total = np.zeros((3, len(units))) if total is None else total
        total[int(split.groups["sex"][i])] += units
    return total


def test_importance_is_a_sum_over_patients_and_never_over_batches() -> None:
    # A squared batch gradient (SWiFT's and BMFT's code) is neither additive over hospitals nor free of the batch size.
    by_hand = fisher_by_hand(LAYERS)
    place = town("zhang_zhou", **HOW)
    for sites in (1, 3, 5):
        total = place.run(*parts_of(60, sites)).named("group_fisher")[0]
        np.testing.assert_allclose(total.value("energies"), by_hand, rtol=2e-4)


@pytest.mark.parametrize("granularity", ["parameter", "channel", "tensor"])
def test_pooling_over_units(granularity: str) -> None:
    from equipoise.common import catalogue
    from tests.driving import answer

    place = town("zhang_zhou")
    query = catalogue.group_fisher(place.study, place.model.layout_of(LAYERS), granularity)  # type: ignore[arg-type]
    total = answer(place.study, query.with_inputs(**place.model.inputs()), place.sites(range(60)))
    full = fisher_by_hand(LAYERS, rows=False)
    expected = {
        "parameter": full,
        "channel": fisher_by_hand(LAYERS),
        "tensor": np.stack([full[:, :80].sum(axis=1), full[:, 80:].sum(axis=1)], axis=1),
    }[granularity]
    np.testing.assert_allclose(total.value("energies"), expected, rtol=2e-4)


def test_neutralising_by_hand() -> None:
    fisher, patients = np.array([[1.0, 4.0], [9.0, 1.0], [7.0, 7.0]]), np.array([90.0, 10.0, 0.0])
    np.testing.assert_allclose(neutralised(fisher, patients, "mean"), [5.0, 2.5])
    np.testing.assert_allclose(neutralised(fisher, patients, "max"), [9.0, 4.0])
    np.testing.assert_allclose(neutralised(fisher, patients, "min"), [1.0, 1.0])
    np.testing.assert_allclose(neutralised(fisher, patients, "geometric"), [3.0, 2.0], rtol=1e-9)
    np.testing.assert_allclose(neutralised(fisher, patients, "pooled"), [1.8, 3.7])


def test_a_group_is_divided_by_its_own_patients_over_all_hospitals() -> None:
    # The mean of the hospitals' own means would give a hospital with three patients of a group equal say.
    place = town("zhang_zhou", **HOW)
    done = place.run(*parts_of(60, 5))
    patients = done.named("cell_counts")[0].value("patients")[:2].sum(axis=1)
    means = fisher_by_hand(LAYERS)[:2] / patients[:, None]
    joined = neutralised(means, patients, "mean")
    rows = np.split(np.sqrt(joined), [8])
    first = done.named("local_training")[0].query
    for name, raw in zip(LAYERS, rows, strict=True):
        weights = np.maximum(raw, np.sqrt(1e-3 * (raw**2).mean()))
        share = first.inputs["model.right"][name].shape[0]
        expected = factorise(place.model.base[name], weights, share).dense(place.model.base[name].shape)
        np.testing.assert_allclose(state_from_inputs(first.inputs)[name], expected, atol=2e-4)


def test_the_rank_is_the_smallest_that_keeps_the_energy() -> None:
    for energy, share in ((0.2, 0.25), (0.999, 0.5)):
        done = town("zhang_zhou", **{**HOW, "energy": energy}).run()
        ranks = {name: pair.rank for name, pair in done.outcome.classifier.factors.items()}
        assert ranks == {name: rank_of(done.outcome.classifier.base[name].shape, share) for name in LAYERS}
        rows = done.outcome.notes["facts"][0]["rows"][:2]
        assert [int(row[2]) for row in rows] == list(ranks.values())
        assert (min(float(row[3]) for row in rows) >= energy) == (energy == 0.2)


def test_only_left_factors_biases_and_the_head_travel_and_move() -> None:
    place = town("zhang_zhou", **HOW)
    done = place.run(*parts_of(60))
    after, asked = done.outcome.classifier, done.named("local_training")
    for total in asked:
        assert total.query.parameters["tensors"] == [
            "extractor.0.weight", "extractor.0.bias", "extractor.2.weight", "extractor.2.bias", "head.weight",
            "head.bias",
        ]  # fmt: skip
        sent = total.query.inputs
        assert not set(LAYERS) & set(sent.get("model.extractor", {}))
        assert set(sent["model.left"]) == set(sent["model.right"]) == set(LAYERS)
    ranks = [after.factors[name].rank for name in LAYERS]
    assert asked[0].query.blocks["change"].size == 8 * ranks[0] + 8 + 6 * ranks[1] + 6 + 6 + 1
    digests = [total.query.input_digests for total in asked]
    assert digests[0]["model.right"] == digests[1]["model.right"]  # cached at the site after the first round
    assert digests[0]["model.left"] != digests[1]["model.left"]
    for name in LAYERS:
        right = after.factors[name].right.astype(np.float64)
        dense = after.state[name].astype(np.float64)
        np.testing.assert_allclose(dense @ right.T @ right, dense, atol=1e-5)  # still in the row space of B
    np.testing.assert_allclose(after.state["extractor.0.weight"], after.factors[LAYERS[0]].dense((8, 10)), atol=1e-7)


def test_the_mean_of_the_hospitals_factors_is_the_mean_of_their_products() -> None:
    place = town("zhang_zhou", **{**HOW, "rounds": 1, "momentum": 0.9, "local_epochs": 3, "batch": 8})
    parts = parts_of(60)
    done = place.run(*parts)
    first = done.named("local_training")[0].query
    from tests.tiny import contribution, declare

    sites = place.sites(*parts)
    study = declare(place.study, {s: len(p) for s, p in zip(sites, parts, strict=True)})
    layout = done.outcome.classifier.layout_of(first.parameters["tensors"])
    dense = np.zeros((8, 10))
    right = first.inputs["model.right"][LAYERS[0]].astype(np.float64)
    start = state_from_inputs(first.inputs)[LAYERS[0]]
    for (site, memory), part in zip(sites.items(), parts, strict=True):
        sent = contribution(study, first, memory.split("train"), site, 2)
        change = layout.split(first.blocks["change"].lattice.decode(sent["change"]) * 60 / len(part))
        dense += len(part) / 60 * (start + change[LAYERS[0]] @ right)
    np.testing.assert_allclose(done.outcome.classifier.state[LAYERS[0]], dense, atol=1e-5)


def test_a_step_of_a_left_factor_by_hand() -> None:
    place = town("zhang_zhou", **{**HOW, "rounds": 1, "batch": 1000, "lr": 0.3, "momentum": 0.0})
    done = place.run()
    first = done.named("local_training")[0].query
    model, split = network(), place.people.split(range(60))
    model.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in state_from_inputs(first.inputs).items()})
    right = torch.from_numpy(first.inputs["model.right"][LAYERS[0]])
    left = torch.from_numpy(first.inputs["model.left"][LAYERS[0]]).requires_grad_()
    state = {**dict(model.named_parameters()), LAYERS[0]: left @ right}
    z = torch.func.functional_call(model, state, (split.inputs,))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        z, split.label[split.patient].float(), reduction="none"
    )
    (entropy / torch.bincount(split.patient)[split.patient]).sum().div(60).backward()
    moved = done.outcome.classifier.factors[LAYERS[0]].left - first.inputs["model.left"][LAYERS[0]]
    np.testing.assert_allclose(moved, -0.3 * left.grad.numpy(), atol=3e-6)


def test_the_bytes_are_shown() -> None:
    done = town("zhang_zhou", **{**HOW, "energy": 0.2}).run()
    rows = {row[0]: row for row in done.outcome.notes["facts"][0]["rows"]}
    # Dense: 80 + 48 weights, 14 biases, a head of 7; factors of rank 2 and 1 in their place: 16 and 6.
    assert rows["bytes up a round and hospital"][1:4] == ["dense 1192", "factors 344", "saved 71.1%"]
    assert rows["bytes down a round and hospital"][1:3] == ["dense 596", "factors 172"]


def test_layers_that_do_not_fit_are_refused() -> None:
    model = town("zhang_zhou").model
    for wrong in ("head.weight", "extractor.0.bias", "extractor.9.weight"):
        with pytest.raises(StudyError, match=f"'{wrong}' is no weight of the extractor.*there are: extractor.0.weight"):
            wide_layers(model, [wrong])
    with pytest.raises(StudyError, match="no hidden layer of at least 16"):
        wide_layers(model, None)


def test_controls_resolve_and_the_plan_lists_the_rounds_of_each_rank() -> None:
    place = town("zhang_zhou", controls=["no_mask", "permuted", "plain", "balanced"], **HOW)
    resolve(place.study)
    planned = METHODS["zhang_zhou"].plan(place.study, place.model)
    assert len([query for query in planned if query.name == "local_training"]) == 4
    ones = town("zhang_zhou", **HOW, importance="ones").run().outcome.classifier
    plain = factorise(place.model.base[LAYERS[0]], np.ones(8), ones.factors[LAYERS[0]].rank)
    np.testing.assert_allclose(ones.factors[LAYERS[0]].right, plain.right, atol=1e-6)


def test_an_image_model_is_factorised_by_its_filters() -> None:
    from tests.tiny import weights_file

    file = weights_file("conv")
    people = draw_people(30, 5, images=True)
    place = town("zhang_zhou", count=30, file=file, people=people, layers=["extractor.3.weight"], ranks=[0.5], rounds=1,
                 study={"factory": "conv"})  # fmt: skip
    after = place.run(*parts_of(30)).outcome.classifier
    assert after.factors["extractor.3.weight"].left.shape == (6, 3)
    assert after.state["extractor.3.weight"].shape == (6, 4, 3, 3)


def test_a_layer_that_whitened_rounds_cannot_move_is_refused_before_anything_is_spent() -> None:
    network = resnet_small()
    model, one_by_one = Classifier.of(file_of(network), network, "head."), "extractor.4.shortcut.weight"
    method = {"name": "zhang_zhou", "layers": [one_by_one]}
    METHODS["zhang_zhou"].plan(make_study(method), model)
    private = make_study(
        method, privacy={"mode": "local", "epsilon": 3}, evaluation={"threshold": {"rule": "fixed:0.5"}}
    )
    with pytest.raises(StudyError, match="whitened rounds can move; there are: ") as found:
        METHODS["zhang_zhou"].plan(private, model)
    possible = str(found.value).partition("there are: ")[2].split(", ")
    assert one_by_one not in possible
    # Those that it names are those that the rounds know, to the last one.
    Space.of(network, "whole").with_filters({n: np.zeros((2, *model.layout().shapes[n][1:])) for n in possible})
