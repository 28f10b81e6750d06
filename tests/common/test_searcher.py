"""The searcher: the fixed proposals come first, it repeats, and it learns."""

from __future__ import annotations

import pytest

from equipoise.common.searcher import Searcher


def proposals(kind: str, seed: int, count: int = 20, lie: int | None = None) -> list[tuple[tuple[int, ...], float]]:
    searcher = Searcher(kind, 4, 1e-3, 1e-1, seed, [((1, 1, 1, 1), 0.01), ((0, 0, 0, 0), 0.01)])  # type: ignore[arg-type]
    found = []
    for number in range(count):
        mask, lr = searcher.ask()
        found.append((mask, lr))
        searcher.tell(float(mask[0]) - sum(mask[1:]) / 4 + (1.0 if number == lie else 0.0))
    return found


def test_the_first_proposals_are_those_given() -> None:
    assert proposals("tpe", 3)[:2] == [((1, 1, 1, 1), 0.01), ((0, 0, 0, 0), 0.01)]


def test_the_same_seed_and_sums_propose_the_same_and_others_differ() -> None:
    assert proposals("tpe", 3) == proposals("tpe", 3)
    assert proposals("tpe", 3) != proposals("tpe", 4)
    changed = proposals("tpe", 3, lie=5)
    assert changed[:10] == proposals("tpe", 3)[:10]  # before it has learnt, what it is told changes nothing
    assert changed != proposals("tpe", 3)
    assert proposals("random", 3, lie=5) == proposals("random", 3)


def test_learning_rates_stay_in_their_range() -> None:
    assert all(1e-3 <= lr <= 1e-1 for _, lr in proposals("tpe", 1) + proposals("random", 1))


def test_it_learns() -> None:
    good = [sum(mask == (1, 0, 0, 0) for mask, _ in proposals(kind, 0, 60)[20:]) for kind in ("tpe", "random")]
    assert good[0] >= 3 * max(good[1], 1)


def test_without_bits_only_the_learning_rate_is_proposed() -> None:
    searcher = Searcher("tpe", 0, 0.1, 1.0, 0, [((), 0.3)])
    assert searcher.ask() == ((), 0.3)
    searcher.tell(0.0)
    mask, lr = searcher.ask()
    assert mask == ()
    assert 0.1 <= lr <= 1.0


def test_tell_needs_an_ask() -> None:
    with pytest.raises(ValueError, match="tell before ask"):
        Searcher("tpe", 1, 0.1, 1.0, 0).tell(1.0)
