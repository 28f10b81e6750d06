"""DP-SGD at a site: what one patient can move, the noise of a step, whose gradients they are, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from equipoise.client import private_training
from equipoise.client.cohort import Split
from equipoise.client.computations import COMPUTATIONS, Workplace
from equipoise.client.private_training import LatticeOptimizer, check_rows, flipped_secretly, hooked
from equipoise.client.release import release
from equipoise.client.scores import ScoreCache
from equipoise.client.workbench import _laid_out
from equipoise.common import catalogue, models
from equipoise.common.classifier import Classifier
from equipoise.common.errors import RefusedError, StudyError
from equipoise.common.factory import load_factory
from equipoise.common.losses import row_losses
from equipoise.common.mask import SoftMask
from equipoise.common.privacy.mechanisms import NoNoise
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import MOVED, Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.vision_transformer import vit
from equipoise.common.wire import unpack
from tests import tiny
from tests.tiny import (
    FEATURES,
    Memory,
    People,
    any_plan,
    charge_for,
    classifier_of,
    declare,
    draw_people,
    make_agent,
    make_study,
    request_for,
    weights_file,
)

CELLS = 6
SITE = "a"
CLIP = 0.5
WEIGHTS = {
    "task": np.array([[1.0, 2.0], [0.5, 4.0], [0.0, 1.0]]),
    "bias": np.array([[0.5, -1.0], [-0.5, 1.0], [0.0, 0.0]]),
}


def study_of(factory: str = "small") -> Study:
    """The tiny study, its rounds averages of DP-SGD."""
    study = make_study({"name": "fine_tune", "step": "fedavg"}, file=weights_file(factory), factory=factory)
    privacy = study.privacy.model_copy(update={"mode": "local", "epsilon": 3.0})
    return declare(study, {SITE: 40, "b": 40}).model_copy(update={"privacy": privacy})


STUDY = study_of()
FILE = weights_file()
MODEL = classifier_of(STUDY, FILE)
PEOPLE = draw_people(40, seed=2)
LAYOUT = MODEL.layout("whole")
DIMENSIONS = LAYOUT.size + CELLS


def query_of(
    model: Classifier = MODEL,
    *,
    batch: int = 1000,
    epochs: int = 1,
    beta: float = 0.7,
    mask: SoftMask | None = None,
    **changes: Any,
) -> Query:
    """A round; by default one step of everybody, by which the weights move by the un-noised mean itself."""
    parameters = {"beta": beta, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "flips": False, "round": 0, **changes}
    query = catalogue.private_training(STUDY, LAYOUT, "whole", parameters, batch, epochs)
    inputs: dict[str, Any] = {**model.inputs(), "weights": WEIGHTS, "clip": {"clip": np.array([CLIP])}}
    if mask is not None:
        inputs["mask"] = {name: value.astype(np.float32) for name, value in mask.values.items()}
    return query.with_inputs(**inputs)


def place_of(query: Query, split: Split) -> Workplace:
    return Workplace(STUDY, SITE, query, split, ScoreCache(), 0)


def released(query: Query, split: Split) -> dict[str, NDArray[np.int64]]:
    """What leaves the door."""
    return release(charge_for(query), query, COMPUTATIONS["private_training"](place_of(query, split)))


def sums_of_steps(query: Query, split: Split) -> list[NDArray[np.int64]]:
    """The un-noised sum of every step, in lattice steps, weights then cells; no noise is added either."""
    found = []

    class Watched(LatticeOptimizer):
        def add_noise(self) -> None:
            found.append(self.points.copy())
            super().add_noise()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_training, "LatticeOptimizer", Watched)
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        released(query, split)
    return found


def moved(query: Query, one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    return float(np.linalg.norm((one - other).astype(np.float64)) * query.plan.step)


# --- one patient --------------------------------------------------------------------------------------------------


def scaled(factor: float) -> Classifier:
    """A model that a server may send: the vendor's with a head of its own."""
    return MODEL.with_values({name: MODEL.base[name] * np.float32(factor) for name in MODEL.layout("head").shapes})


MODELS = {"the vendor's": 1.0, "a large head": 1e4, "a small head": 1e-30}
extreme = st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 1e-40, 0.0, 1.0, -1.0])
rows = st.lists(
    st.lists(st.floats(-1, 1, width=32) | extreme, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=4
)
patients = st.lists(st.tuples(rows, st.integers(0, 1), st.integers(0, 2)), max_size=6)


def people_of(drawn: Any) -> People:
    """The drawn patients, after some ordinary ones."""
    inputs = [torch.tensor([[*row, *[0.0] * FEATURES] for row in rows], dtype=torch.float32) for rows, *_ in drawn]
    label, sex = (np.array([one[i] for one in drawn], dtype=np.int64) for i in (1, 2))
    return People(
        (*PEOPLE.rows, *inputs),
        np.append(PEOPLE.label, label),
        np.append(PEOPLE.sex, sex),
        np.append(PEOPLE.age, np.zeros(len(drawn), dtype=np.int64)),
    )


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=patients, model=st.sampled_from(list(MODELS)), share=st.floats(0, 1, exclude_max=True))
def test_one_patient_moves_the_sum_of_a_step_by_no_more_than_the_plan_says(
    drawn: Any, model: str, share: float
) -> None:
    query, people = query_of(scaled(MODELS[model])), people_of(drawn)
    gone = int(share * len(people))
    everyone = list(range(len(people)))
    [total] = sums_of_steps(query, people.split(everyone))
    [without] = sums_of_steps(query, people.split([i for i in everyone if i != gone]))
    [alone] = sums_of_steps(query, people.split([gone]))
    assert moved(query, total, without) <= query.plan.sensitivity
    # To the last bit: what a patient adds does not hang on who else is there.
    assert (total - without == alone).all()


def test_the_bound_is_met_by_somebody() -> None:
    query = query_of(scaled(4.0))
    lengths = [moved(query, sums_of_steps(query, PEOPLE.split([i]))[0], np.zeros(1, dtype=np.int64)) for i in range(40)]
    assert 0.97 * query.plan.sensitivity < max(lengths) <= query.plan.sensitivity


@pytest.mark.parametrize("images", [1, 2, 31, 32, 33, 70])
def test_many_images_are_one_patient_and_each_is_clipped(images: int) -> None:
    query = query_of()
    drawn = torch.from_numpy(np.random.default_rng(images).normal(size=(images, 2 * FEATURES)).astype(np.float32) * 9)
    people = People((drawn,), np.array([1]), np.array([0]), np.array([0]))
    [alone] = sums_of_steps(query, people.split([0]))
    expected = np.mean([row_vector(MODEL, row[None], label=1, cell=1) for row in drawn], axis=0)
    assert np.abs(alone * query.plan.step - expected).max() < 2 * query.plan.step
    assert np.linalg.norm(alone) * query.plan.step <= query.plan.sensitivity


def row_vector(model: Classifier, x: Tensor, label: int, cell: int) -> NDArray[np.float64]:
    """One image's clipped gradient and score in units of the bound, by autograd."""
    net = tiny.network()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in model.state.items()})
    logit = net(x)
    task, bias = (torch.from_numpy(WEIGHTS[key].reshape(-1)) for key in ("task", "bias"))
    loss = row_losses(logit, torch.tensor([label]), torch.tensor([cell]), task, bias, 0.7)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss.sum(), list(net.parameters()))]).double()
    vector = np.zeros(DIMENSIONS)
    vector[: LAYOUT.size] = (gradient / max(float(gradient.norm()), CLIP)).detach().numpy()
    vector[LAYOUT.size + cell] = 0.4 * (float(torch.sigmoid(logit.detach().double())) - 0.5)
    return vector


def test_a_row_that_is_not_finite_adds_nothing_and_counts_as_a_row() -> None:
    query = query_of()
    sound, broken = PEOPLE.rows[0][:1], torch.full((1, 2 * FEATURES), math.nan)
    label, sex, age = (np.array([value[0]]) for value in (PEOPLE.label, PEOPLE.sex, PEOPLE.age))
    [one] = sums_of_steps(query, People((sound,), label, sex, age).split([0]))
    [both] = sums_of_steps(query, People((torch.cat([sound, broken]),), label, sex, age).split([0]))
    assert np.abs(2 * both - one).max() <= 2
    [none] = sums_of_steps(query, People((broken,), label, sex, age).split([0]))
    assert not none.any()


def test_without_a_clip_the_contract_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would see it: neither the clip of an image nor the rounding that bounds a patient is idle."""
    monkeypatch.setattr(private_training, "clip_and_round", lambda v, clip, step: np.rint(v / step).astype(np.int64))
    monkeypatch.setattr(private_training, "ROUNDING", 3.0)
    query = query_of(scaled(4.0))
    lengths = [moved(query, sums_of_steps(query, PEOPLE.split([i]))[0], np.zeros(1, dtype=np.int64)) for i in range(40)]
    assert max(lengths) > 2 * query.plan.sensitivity


# --- the noise and the sampling -----------------------------------------------------------------------------------


def noise_of(query: Query, draws: int) -> NDArray[np.float64]:
    """Noise of single steps of a site without patients, in units of the plan's noise."""
    nobody, found = PEOPLE.split([]), []
    for _ in range(draws):
        points = released(query, nobody)
        change = query.blocks[MOVED].lattice.decode(points[MOVED])
        # One step at learning rate 1: the site's share, minus the noise in C, over the expected patients.
        noise = -change * 2 * 40 * query.plan.rate / CLIP
        found.append(np.append(noise, query.blocks["scores"].lattice.decode(points["scores"]).ravel()))
    return np.concatenate(found) / query.plan.noise


def test_an_empty_batch_is_noised_at_the_scale_of_the_plan() -> None:
    query = query_of().placed(0, noise=2.3)
    sample = noise_of(query, 30)
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], len(sample))
    statistic = float((sample**2).sum())
    assert low < statistic < high
    for wrong in (1 / math.sqrt(2), math.sqrt(2)):
        assert not low < statistic * wrong**2 < high
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(sample * wrong, "norm").pvalue < 1e-6


def test_every_step_is_noised_anew_and_no_seed_reaches_it() -> None:
    query = query_of(batch=8).placed(0, noise=2.3)  # 5 steps, each of a fifth of the patients
    assert (query.plan.releases, query.plan.rate) == (5, 0.2)
    sample = []
    for _ in range(100):
        torch.manual_seed(0)
        np.random.seed(0)
        total = Sum(query, (SITE,), released(query, PEOPLE.split([])))
        sample.append(total.value("scores").ravel())
    assert total.noise_variance == pytest.approx(5 * query.plan.noise**2, rel=1e-3)
    flat = np.concatenate(sample) / math.sqrt(total.noise_variance)
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], flat.size)
    assert low < float((flat**2).sum()) < high


def test_patients_are_taken_by_the_sites_own_coins_at_the_plans_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def coins(rate: float, count: int) -> NDArray[np.int64]:
        asked.append((rate, count))
        return np.array([3, 17], dtype=np.int64)

    query = query_of(batch=8)
    monkeypatch.setattr(private_training, "poisson_sample", coins)
    sums = sums_of_steps(query, PEOPLE.split(range(40)))
    assert asked == [(0.2, 40)] * 5
    monkeypatch.undo()
    [first] = sums_of_steps(query_of(), PEOPLE.split([3, 17]))
    assert (sums[0] == first).all()


def test_batches_vary_and_torch_decides_nothing() -> None:
    query, sizes = query_of(batch=8), []
    for _ in range(20):
        torch.manual_seed(0)
        sums = sums_of_steps(query, PEOPLE.split(range(40)))
        sizes += [int((np.abs(one[LAYOUT.size :]).sum() > 0) + np.abs(one).sum()) for one in sums]
    assert len(set(sizes)) > 90


def test_the_divisor_is_the_expected_number_of_patients() -> None:
    query = query_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        points = released(query, PEOPLE.split(range(7)))
    [total] = sums_of_steps(query, PEOPLE.split(range(7)))
    change = query.blocks[MOVED].lattice.decode(points[MOVED])
    # 40 are declared of 80, whoever is there: half of the step's mean over 40.
    expected = -0.5 * total[: LAYOUT.size] * query.plan.step * CLIP / 40
    assert change == pytest.approx(expected, abs=1e-6)
    assert (query.blocks["scores"].lattice.decode(points["scores"]).ravel() == total[-CELLS:] * query.plan.step).all()


def test_the_mask_multiplies_the_noised_step_and_a_masked_tensor_does_not_travel() -> None:
    values = {name: np.full(shape, 0.25) for name, shape in LAYOUT.shapes.items()}
    values["extractor.2.weight"][:] = 0.0
    whole, masked = query_of(), query_of(mask=SoftMask(values))
    assert "extractor.2.weight" not in masked.parameters["tensors"]
    assert masked.blocks[MOVED].size == LAYOUT.size - 48
    assert masked.template == whole.template
    [total] = sums_of_steps(masked, PEOPLE.split(range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        change = masked.blocks[MOVED].lattice.decode(released(masked, PEOPLE.split(range(40)))[MOVED])
    assert change == pytest.approx(-0.25 * 0.5 * total[:-CELLS] * masked.plan.step * CLIP / 40, abs=1e-6)


@pytest.mark.usefixtures("frozen_time")
def test_replies_of_neighbouring_cohorts_differ_in_payload_alone(tmp_path: Path) -> None:
    query = query_of(batch=8)
    broken = torch.full((3, 2 * FEATURES), math.inf)
    people = People((*PEOPLE.rows, broken), *(np.append(v, 1) for v in (PEOPLE.label, PEOPLE.sex, PEOPLE.age)))
    replies = {}
    for who, chosen in {"all": range(41), "without one": range(40), "one": [40], "nobody": []}.items():
        cohort, folder = Memory.everywhere(people.split(list(chosen))), tmp_path / who
        agent = make_agent(SITE, cohort, folder, [STUDY], check_plan=any_plan, scratch=True)
        replies[who] = agent.answer(request_for(STUDY, StudyPlan.single("fine_tune", [query]), query))
    header = unpack(replies["all"])[0]
    assert header["code"] == "ok"
    assert all(unpack(reply)[0] == header for reply in replies.values())
    assert len({len(reply) for reply in replies.values()}) == 1
    size = int.from_bytes(replies["all"][:8], "little") + 8
    assert len({reply[:size] for reply in replies.values()}) == 1
    assert len({reply[size:] for reply in replies.values()}) == len(replies)


@pytest.fixture
def frozen_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's head has the time in it."""
    monkeypatch.setattr("equipoise.client.chain.time.time", lambda: 1e9)
    monkeypatch.setattr("equipoise.client.chain.secrets.token_hex", lambda size: "0" * 2 * size)


# --- gradients by row ---------------------------------------------------------------------------------------------

BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet_small": (models.resnet_small, (3, 32, 32)),
    "resnet18": (models.resnet18, (3, 32, 32)),
    "mlp": (lambda: models.mlp(6), (6,)),
    "given_scores": (models.given_scores, (1,)),
    "vit": (lambda: vit(size=16, patch=8, depth=2), (3, 16, 16)),
    "small": (lambda: tiny.network("small"), (10,)),
    "conv": (lambda: tiny.network("conv"), (3, 8, 8)),
    "a scalar parameter": (lambda: tiny.network("scaled"), (10,)),
}


def by_rows(model: nn.Module, x: Tensor) -> list[Tensor]:
    with hooked(model) as rowwise:
        torch.autograd.backward((rowwise(x) ** 2).sum())
        return [parameter.grad_sample for parameter in model.parameters()]


def loop_over_rows(model: nn.Module, x: Tensor) -> list[Tensor]:
    rows_ = [torch.autograd.grad((model(x[i : i + 1]) ** 2).sum(), list(model.parameters())) for i in range(len(x))]
    return [torch.stack(list(one)) for one in zip(*rows_, strict=True)]


def check_backbone(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)  # as a site holds them
    expected = loop_over_rows(model.eval(), x)
    size = max(float(one.norm()) for one in expected)
    for found, wanted in zip(by_rows(model, x), expected, strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).norm()) < 1e-5 * size
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
    assert not any(module.training or module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    check_rows_of(model, shape)


def check_rows_of(model: nn.Module, shape: tuple[int, ...]) -> None:
    with hooked(model) as rowwise:
        check_rows(rowwise, list(model.parameters()), torch.zeros(0, *shape))


@pytest.mark.parametrize("name", BACKBONES)
def test_hooks_leave_the_gradients_of_a_loop_over_the_rows(name: str) -> None:
    make, shape = BACKBONES[name]
    torch.manual_seed(0)
    check_backbone(make(), shape)


@pytest.mark.parametrize("name", ["resnet_small", "resnet18", "vit", "conv"])
def test_a_site_whose_filters_lie_channels_last_has_the_same_gradients(name: str) -> None:
    make, shape = BACKBONES[name]
    torch.manual_seed(0)
    model = _laid_out(make())
    check_backbone(model, shape)


class AtAKink(nn.Module):
    """Its first `times` answers to several rows lie on another side of a kink than those to each row alone."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(4, 1), times

    def forward(self, x: Tensor) -> Tensor:
        self.times -= len(x) > 1
        logit: Tensor = self.layer(x).squeeze(1)
        return logit * (2.0 if len(x) > 1 and self.times >= 0 else 1.0)


def test_rows_at_a_kink_are_drawn_again_and_rows_that_never_agree_are_refused() -> None:
    check_rows_of(AtAKink(2), (4,))
    with pytest.raises(RefusedError, match="not those of autograd"):
        check_rows_of(AtAKink(3), (4,))


@pytest.mark.slow
def test_hooks_leave_the_gradients_of_a_loop_over_densenets_rows() -> None:
    pytest.importorskip("monai")
    torch.manual_seed(0)
    check_backbone(load_factory("equipoise.common.models:densenet121", {}), (3, 64, 64))


class Mixing(nn.Module):
    """Each row's logit has the batch's mean in it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(dim=0)).squeeze(1)


class Shared(nn.Module):
    """The weight of a layer is used outside it, where its hook does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)) @ self.inner.weight).squeeze(1)


class Dropping(nn.Module):
    """Dropout, which has to stay off."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.head = nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.inner(x)))).squeeze(1)


@pytest.mark.parametrize("make", [Mixing, Shared, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))])
def test_a_network_whose_gradients_by_row_are_wrong_is_refused(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(RefusedError, match=r"Opacus"):
        check_rows_of(make(), (4,))


def test_dropout_stays_off() -> None:
    check_backbone(Dropping(), (4,))


# --- what is refused, and mirrored images -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        {"clip": {"clip": np.array([0.0])}},
        {"clip": {"clip": np.array([math.inf])}},
        {"clip": {"clip": np.array([1.0, 1.0])}},
        {"weights": {key: value[:2] for key, value in WEIGHTS.items()}},
        {"weights": {**WEIGHTS, "task": np.full((3, 2), math.nan)}},
    ],
)
def test_inputs_that_do_not_fit_are_refused_whoever_is_there(inputs: Any) -> None:
    query = query_of()
    query = query.with_inputs(**{**query.inputs, **inputs})
    for chosen in ([], [0], range(40)):
        with pytest.raises(RefusedError):
            released(query, PEOPLE.split(list(chosen)))


@pytest.mark.parametrize("factor", [3e38, math.nan])
def test_weights_without_sound_gradients_are_refused_whoever_is_there(factor: float) -> None:
    query = query_of(scaled(factor))
    for chosen in ([], [0], range(40)):
        with pytest.raises(RefusedError, match="gradients that are no numbers"):
            released(query, PEOPLE.split(list(chosen)))


def test_shares_of_noise_do_not_go_through_a_sites_own_steps() -> None:
    privacy = STUDY.privacy.model_copy(update={"mode": "distributed", "secure_sum": True})
    study = STUDY.model_copy(update={"privacy": privacy})
    with pytest.raises(StudyError, match="write mode: local, or step: whitened"):
        catalogue.private_training(study, LAYOUT, "whole", {}, 8, 1)


def test_the_rate_needs_declared_patients() -> None:
    with pytest.raises(StudyError, match=r"sites\.declared_patients is missing"):
        catalogue.private_training(declare(STUDY, {}), LAYOUT, "whole", {}, 8, 1)


def test_images_are_mirrored_by_coins_of_the_site() -> None:
    x = torch.arange(2000 * 4, dtype=torch.float32).reshape(2000, 1, 2, 2)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        mirrored = flipped_secretly(x)
        assert (mirrored.flatten(1).sort(dim=1).values == x.flatten(1)).all()
        across = mirrored.flatten(1).argmax(dim=1)
        assert all(400 < int((across == corner).sum()) < 600 for corner in range(4))
        found.append(mirrored)
    assert not torch.equal(*found)


def trained_on_images(rows: tuple[Tensor, ...], flips: bool) -> dict[str, NDArray[np.int64]]:
    """What one step of everybody gives without noise, of 40 patients with these images."""
    study, drawn = study_of("conv"), draw_people(40, seed=4, images=True)
    model = classifier_of(study, weights_file("conv"))
    parameters = {"beta": 0.7, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "flips": flips, "round": 0}
    query = catalogue.private_training(study, model.layout("whole"), "whole", parameters, 1000, 1)
    query = query.with_inputs(**model.inputs(), weights=WEIGHTS, clip={"clip": np.array([CLIP])})
    split = People(rows, drawn.label, drawn.sex, drawn.age).split(range(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        place = Workplace(study, SITE, query, split, ScoreCache(), 0)
        return release(charge_for(query), query, COMPUTATIONS["private_training"](place))


def test_flips_train_on_the_mirrored_images_and_leave_tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw_people(40, seed=4, images=True).rows
    mirrored = tuple(row.flip(-1) for row in rows)
    plain, other = (trained_on_images(images, flips=False) for images in (rows, mirrored))
    seen = []

    def all_across(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flip(-1)

    monkeypatch.setattr(private_training, "flipped_secretly", all_across)
    flipped = trained_on_images(rows, flips=True)
    assert sum(seen) >= sum(len(row) for row in rows)
    assert all((flipped[name] == other[name]).all() for name in flipped)
    assert not all((flipped[name] == plain[name]).all() for name in flipped)
    seen.clear()
    assert all((trained_on_images(rows, flips=False)[name] == plain[name]).all() for name in plain)
    released(query_of(flips=True), PEOPLE.split(range(40)))
    assert not seen
