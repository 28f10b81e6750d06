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


def exact_scores(view: View) -> NDArray[np.float64]:
    """`patient_scores` where no noise protects the patients: their last bits have nothing to hide.

    No batch is filled up, which at a site of few patients is most of the work.
    """
    _places(view)  # a network that mixes rows is refused here too
    return patient_means(view.logits().double().cpu(), view.split)


def logits_alike(view: View) -> Tensor:
    """Logit of each row, (m,) float64, without gradients, each a function of its row alone."""
    logits = torch.zeros(len(view.split.patient), dtype=torch.float64)
    with torch.no_grad():
        places = _places(view)
        for rows in torch.split(torch.arange(len(logits)), len(places)) if len(logits) else ():
            at = places[: len(rows)]
            logits[rows] = view.model(view.rows_at(rows, at, PLACES))[at].double().cpu()
    return logits


def _places(view: View) -> Tensor:
    with torch.no_grad():
        return alike_places(view, "scores", lambda x: [view.model(x)])


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
        """The scores of the model in the bundles of a query whose roles begin with `prefix`, computed once."""
        digests = query.input_digests
        # By the very roles that the state is made of: a server may name others, and would file its scores under them.
        roles = (prefix + part for part in WEIGHTS)
        weights = tuple((role.removeprefix(prefix), digests[role]) for role in roles if role in digests)
        # The study says how rows are read and by which network, so scores of two studies are never mixed.
        key = (study.hash, weights, query.split, query.private)
        if key not in self._scores:
            state = state_from_inputs(query.inputs, prefix)
            view = View(study, network(study, state), split)
            self._scores[key] = patient_scores(view) if query.private else exact_scores(view)
            if len(self._scores) > self._size:
                self._scores.popitem(last=False)
        self._scores.move_to_end(key)
        return self._scores[key]
