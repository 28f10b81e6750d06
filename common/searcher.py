"""Who proposes candidates: a tree-structured Parzen estimator, or chance.

Optuna's sampler is asked for a mask and a learning rate and told what became of them, one candidate at a time (Bergstra
et al. 2011; Optuna, Akiba et al. 2019, arXiv:1907.10902). It sees masks, learning rates and released validation sums,
nothing else. With the study's public seed and the same sums it proposes the same candidates, so a search replays.

>>> searcher = Searcher("tpe", bits=3, low=1e-3, high=1e-1, seed=7, first=[((1, 1, 1), 0.01)])
>>> searcher.ask()
((1, 1, 1), 0.01)
>>> searcher.tell(0.8)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from equipoise.common.streams import stream_seed

Kind = Literal["tpe", "random"]
Proposal = tuple[tuple[int, ...], float]
STARTUP = 10  # candidates before the estimator has something to say (Optuna's default)


class Searcher:
    """Proposes masks and learning rates.

    Args:
        kind: `tpe`, or `random`, the control.
        bits: of a mask; with 0 only the learning rate is searched.
        low, high: the learning rate's range, searched on a logarithmic scale.
        seed: the study's public seed.
        first: proposals that come before any of the sampler's own.
    """

    def __init__(
        self, kind: Kind, bits: int, low: float, high: float, seed: int, first: Sequence[Proposal] = ()
    ) -> None:
        import optuna  # a second to load, and only a search needs it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        own = stream_seed(seed, "fairtune", "searcher") % 2**32
        sampler: optuna.samplers.BaseSampler
        if kind == "tpe":
            sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP)
        else:
            sampler = optuna.samplers.RandomSampler(seed=own)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._bits, self._low, self._high = bits, low, high
        for mask, lr in first:
            self._study.enqueue_trial({**{f"bit{i}": on for i, on in enumerate(mask)}, "lr": lr})
        self._asked: optuna.Trial | None = None

    def ask(self) -> Proposal:
        """The next candidate."""
        self._asked = self._study.ask()
        mask = tuple(self._asked.suggest_int(f"bit{i}", 0, 1) for i in range(self._bits))
        return mask, float(self._asked.suggest_float("lr", self._low, self._high, log=True))

    def tell(self, value: float) -> None:
        """What became of the candidate that was asked for last; larger is better."""
        if self._asked is None:
            raise ValueError("tell before ask")
        self._study.tell(self._asked, value)
        self._asked = None
