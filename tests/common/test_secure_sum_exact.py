"""The secure sum is the sum: exact for every number of sites and every set of sites that drop out, or refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy

import numpy as np
import pytest

from equipoise.common.errors import QuorumError
from equipoise.common.secure_sum import terms as terms_module
from equipoise.common.secure_sum.messages import Stage
from equipoise.common.secure_sum.reply import pack_reply
from equipoise.common.secure_sum.site import SecureSite
from equipoise.common.secure_sum.terms import Part
from equipoise.common.secure_sum.threshold import threshold
from tests.secure import NEVER, Release, draw_points, make_terms, plain_sum, site_names


def as_lists(total: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    assert all(array.dtype == np.int64 for array in total.values())
    return {name: [int(number) for number in array] for name, array in total.items()}


@pytest.mark.parametrize("count", range(3, 21))
def test_the_sum_is_exact(count: int) -> None:
    terms = make_terms(count)
    points = draw_points(terms, seed=count)
    release = Release(terms, points)
    assert as_lists(release.run()) == plain_sum(points, terms.sites)
    assert release.coordinator.cohort == terms.sites


def test_two_sites_are_summed_exactly_where_a_test_allows_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic holds for two; that two hide nobody from each other is why no product path allows them."""
    monkeypatch.setattr(terms_module, "LEAST_SITES", 2)
    monkeypatch.setattr("equipoise.common.secure_sum.threshold.LEAST_SITES", 2)
    terms = make_terms(2, colluding=0)
    points = draw_points(terms)
    assert as_lists(Release(terms, points).run()) == plain_sum(points, terms.sites)


def test_the_largest_contributions_of_all_sites_do_not_wrap_around() -> None:
    """K times the reach is one below half of the modulus, in both directions and in both widths."""
    for count, sign in itertools.product((3, 7), (1, -1)):
        parts = {"a": Part(2, 32, (2**31 - 1) // count), "b": Part(2, 64, (2**63 - 1) // count)}
        terms = make_terms(count, parts=parts)
        points = {site: {name: np.full(2, sign * part.reach) for name, part in parts.items()} for site in terms.sites}
        total = as_lists(Release(terms, points).run())
        assert total == {name: [sign * count * part.reach] * 2 for name, part in parts.items()}


def test_arrays_without_an_element_and_of_any_shape_are_summed() -> None:
    terms = make_terms(3, parts={"empty": Part(0, 64, 5), "square": Part(9, 32, 50)})
    points = {
        site: {"empty": np.zeros((0, 2), dtype=np.int64), "square": np.arange(9).reshape(3, 3).T - 4}
        for site in terms.sites
    }
    before = deepcopy(points)
    total = Release(terms, points).run()
    assert total["empty"].shape == (0,)
    assert (total["square"].reshape(3, 3) == 3 * (np.arange(9).reshape(3, 3).T - 4)).all()
    for site, arrays in points.items():  # what a site handed over is still its own
        assert all((array == before[site][name]).all() for name, array in arrays.items())


class Tree:
    """Every way in which sites can drop out of one release, each stage's replies computed once for all that share it.

    A branch ends where the release is refused; the others must give the exact sum.
    """

    def __init__(self, count: int, at_most: int) -> None:
        self.terms = make_terms(count)
        self.points = draw_points(self.terms, seed=count)
        self.at_most = at_most
        self.exact = self.refused = 0

    def grow(self, release: Release, lost: int) -> None:
        coordinator, stage = release.coordinator, release.coordinator.stage
        assert stage is not None
        replies = {}
        for site in coordinator.asked:
            reply = release.answer(site, *coordinator.request(site))
            replies[site] = pack_reply(self.terms, site, release.identities[site], reply)
        states = {site: release.sides[site].to_json() for site in coordinator.asked}
        for absent in self.subsets(coordinator.asked, self.at_most - lost):
            branch = Release(self.terms, self.points, dict(release.sides))
            branch.coordinator = deepcopy(coordinator)
            for site in set(coordinator.asked) - set(absent):
                branch.coordinator.receive(site, replies[site])
                branch.sides[site] = SecureSite.from_json(self.terms, site, release.identities[site], states[site])
            self.step(branch, stage, lost + len(absent))

    def step(self, branch: Release, stage: Stage, lost: int) -> None:
        if lost > len(self.terms.cohort) - self.terms.threshold:
            with pytest.raises(QuorumError, match=f"stage {stage.name}: .* are needed"):
                branch.coordinator.advance()
            with pytest.raises(QuorumError, match="before it was complete"):
                branch.coordinator.total()
            self.refused += 1
        elif branch.coordinator.advance():
            cohort = branch.coordinator.cohort
            assert as_lists(branch.coordinator.total()) == plain_sum(self.points, cohort)
            assert len(cohort) >= self.terms.threshold
            self.exact += 1
        else:
            self.grow(branch, lost)

    @staticmethod
    def subsets(sites: tuple[str, ...], at_most: int) -> Iterator[tuple[str, ...]]:
        for size in range(at_most + 1):
            yield from itertools.combinations(sites, size)


@pytest.mark.parametrize("count", [3, 4, *(pytest.param(count, marks=pytest.mark.slow) for count in (5, 6))])
def test_every_set_of_dropouts_at_every_stage(count: int) -> None:
    """To the threshold the sum over those whose inputs came; one more, at any stage, and the release is refused."""
    spare = count - threshold(count)
    tree = Tree(count, at_most=spare + 1)
    tree.grow(Release(tree.terms, tree.points), lost=0)
    stages = len(Stage)
    assert tree.exact == sum(
        stages**size * len(list(itertools.combinations(range(count), size))) for size in range(spare + 1)
    )
    assert tree.refused >= stages * count  # at least where all that may not drop out do so at once


@pytest.mark.parametrize("count", [7, 9, 12, 16, 20])
def test_dropouts_of_many_sites(count: int) -> None:
    """Random stages for a random set of as many as may drop out; then one more."""
    rng = np.random.default_rng(count)
    terms = make_terms(count)
    points = draw_points(terms, seed=count)
    spare = count - terms.threshold
    for size in (spare, spare + 1):
        gone = {str(site): int(rng.integers(NEVER)) for site in rng.choice(site_names(count), size, replace=False)}
        release = Release(terms, points)
        if size > spare:
            with pytest.raises(QuorumError, match="are needed"):
                release.run(gone)
            continue
        total = release.run(gone)
        cohort = [site for site in terms.sites if gone.get(site, NEVER) > Stage.INPUT]
        assert list(release.coordinator.cohort) == cohort
        assert as_lists(total) == plain_sum(points, cohort)


def test_a_quorum_above_the_threshold_holds_until_the_inputs_are_there() -> None:
    """Ten sites, threshold 7, quorum 8: three may be lost after the inputs, two before."""
    terms = make_terms(10, quorum=8)
    points = draw_points(terms)
    three = site_names(10)[:3]
    for stage in Stage:
        release = Release(terms, points)
        if stage <= Stage.INPUT:
            with pytest.raises(QuorumError, match=f"stage {stage.name}: 7 of 10 sites answered, 8 are needed"):
                release.run(dict.fromkeys(three, int(stage)))
        else:
            assert as_lists(release.run(dict.fromkeys(three, int(stage)))) == plain_sum(points, terms.sites)


def test_three_sites_tolerate_no_dropout_and_the_refusal_says_so() -> None:
    terms = make_terms(3)
    for stage in Stage:
        with pytest.raises(QuorumError, match=r"2 of 3 sites answered, 3 are needed \(3 sites: no site may drop out"):
            Release(terms, draw_points(terms)).run({"site-01": int(stage)})
