"""The score of each patient of a split: one evaluation unit is one patient, with all rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.client.alike import PLACES, alike_places, by_entry
from equipoise.client.cohort import Split
from equipoise.client.workbench import View, network
from equipoise.common.classifier import WEIGHTS, state_from_inputs
from equipoise.common.query import Query
from equipoise.common.study import Study


def patient_scores(view: View) -> NDArray[np.float64]:
    """Logit of each patient's mean score over their rows, (n,) float64.

    A patient with several images counts once, and no patient's score hangs on who else is there (`client.alike`).
    """
    return patient_means(logits_alike(view), view.split)


def logits_alike(view: View) -> Tensor:
    """Logit of each row, (m,) float64, without gradients, each a function of its row alone."""
    logits = torch.zeros(len(view.split.patient), dtype=torch.float64)
    with torch.no_grad():
        places = alike_places(view, "scores", lambda x: [view.model(x)])
        for rows in torch.split(torch.arange(len(logits)), len(places)) if len(logits) else ():
            at = places[: len(rows)]
            logits[rows] = view.model(view.rows_at(rows, at, PLACES))[at].double().cpu()
    return logits


def patient_means(logits: Tensor, split: Split) -> NDArray[np.float64]:
    """Logit of each patient's mean score, (n,) float64, from the logits of the rows, (m,) float64."""
    if len(logits) == split.patients:
        return logits.numpy()
    p = by_entry(torch.sigmoid, logits)
    sums = torch.zeros(split.patients, dtype=torch.float64).index_add_(0, split.patient, p)
    count = torch.bincount(split.patient, minlength=split.patients)
    scores = by_entry(lambda means: torch.logit(means, eps=1e-12), sums / count)
    # The way through probabilities costs digits. A patient's score must not depend on whether some other patient of
    # the site has several rows, so one with a single row keeps its logit.
    single = count[split.patient] == 1
    scores[split.patient[single]] = logits[single]
    return scores.numpy()


class ScoreCache:
    """The last scores of one site by model and split, since an evaluation asks for the same ones several times."""

    def __init__(self, size: int = 32) -> None:
        self._size = size
        self._scores: OrderedDict[Hashable, NDArray[np.float64]] = OrderedDict()

    def scores(self, study: Study, query: Query, prefix: str, split: Split) -> NDArray[np.float64]:
        """`patient_scores` of the model in the bundles of a query that begin with `prefix`, computed once.

        Where no noise protects the patients the last bit of a score has nothing to hide, and no batch is filled up.
        """
        bundles = {role.removeprefix(prefix): digest for role, digest in query.input_digests.items()}
        weights = tuple((part, bundles[part]) for part in WEIGHTS if part in bundles)
        # The study says how rows are read and by which network, so scores of two studies are never mixed.
        key = (study.hash, weights, query.split, query.private)
        if key not in self._scores:
            state = state_from_inputs(query.inputs, prefix)
            view = View(study, network(study, state), split)
            logits = logits_alike(view) if query.private else view.logits().double().cpu()
            self._scores[key] = patient_means(logits, split)
            if len(self._scores) > self._size:
                self._scores.popitem(last=False)
        self._scores.move_to_end(key)
        return self._scores[key]
