"""The site's network, loaded with the weights of the query at hand, and its scores.

Networks are shared by all agents of a process and kept one per thread, since a network holds nothing between two
queries: a thousand simulated sites need no more of them than there are workers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.client.cohort import Split
from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import ModelError
from equipoise.common.losses import cell_index
from equipoise.common.models import load_factory, normalise
from equipoise.common.study import Study

SCORE_BATCH = 128  # larger ones leave the cache
FILLED_BATCH = 32  # of what has to be a function of each patient alone; measured: as fast as 128, to a tenth
_networks = threading.local()


def network(study: Study, state: Mapping[str, NDArray[np.generic]]) -> nn.Module:
    """The study's network in eval mode with the given state dict, on the study's device.

    Eval mode throughout: no dropout, so that what a site computes is a function of its patients, the query and named
    public streams alone.

    Raises:
        ModelError: the state does not fit the network.
    """
    torch.set_num_threads(1)  # per thread; parallelism is over sites, and sums stay the same for any number of workers
    spec = study.model
    key = (spec.factory, tuple(sorted(spec.arguments.items())), spec.device)
    kept: dict[object, nn.Module] = _networks.__dict__.setdefault("kept", {})
    if key not in kept:
        kept[key] = load_factory(spec.factory, spec.arguments).to(spec.device)
    model = kept[key]
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floating) == 1 and floating != {precision(model)}:
        model.to(dtype=floating.pop())
    _load(model, tensors, spec.factory)
    # A training that broke off may have left tensors frozen.
    return model.requires_grad_(True).eval()


def _load(model: nn.Module, tensors: Mapping[str, Tensor], factory: str) -> None:
    """`load_state_dict` without its walk over the modules, which takes longer than a small site's whole training."""
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in tensors.items()}:
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        return
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"weights do not fit {factory}: {str(error).splitlines()[-1].strip()}") from None


def precision(model: nn.Module) -> torch.dtype:
    """The floating type of the network's weights, in which it computes."""
    return next(model.parameters()).dtype


def rows_of(study: Study, model: nn.Module, split: Split, index: slice | Tensor) -> Tensor:
    """The float inputs of some rows, as the network wants them."""
    return _prepared(study, model, split.inputs[index])


def _prepared(study: Study, model: nn.Module, rows: Tensor) -> Tensor:
    batch = normalise(study.inputs, rows)
    batch = batch.to(study.model.device, precision(model))
    # Convolutions train a fifth faster on this layout, which they keep from layer to layer; the values are the same.
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def cells_of(study: Study, split: Split) -> Tensor:
    """Cell (primary group x label) of each patient, (n,) int64."""
    return cell_index(split.groups[study.primary.name], split.label)


def filled_rows(study: Study, model: nn.Module, split: Split, index: slice) -> Tensor:
    """The float inputs of at most FILLED_BATCH rows (or of one patient's), and zeros up to that number.

    A library chooses its kernels, and with them its rounding, by the size of the batch. Where all batches have one
    size, a row's result does not hang on how many other patients there are; else a model made for it (large weights
    that cancel) would turn the rounding of other patients' scores into a sign that one patient is there.
    """
    rows = split.inputs[index]
    missing = FILLED_BATCH - len(rows)
    if missing > 0:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return _prepared(study, model, rows)


def row_logits(study: Study, model: nn.Module, split: Split) -> Tensor:
    """Logit of each row, (m,), without gradients."""
    with torch.no_grad():
        parts = [
            model(rows_of(study, model, split, slice(start, start + SCORE_BATCH)))
            for start in range(0, len(split.patient), SCORE_BATCH)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=precision(model))


def _logits_alike(study: Study, model: nn.Module, split: Split) -> Tensor:
    """The same in filled batches: float64, each a function of its row alone."""
    count = len(split.patient)
    with torch.no_grad():
        parts = [
            model(filled_rows(study, model, split, slice(start, start + FILLED_BATCH)))
            for start in range(0, count, FILLED_BATCH)
        ]
    return torch.cat(parts)[:count].to(torch.float64) if parts else torch.zeros(0, dtype=torch.float64)


def patient_scores(study: Study, model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Logit of each patient's mean score over their rows, (n,) float64.

    One evaluation unit is one patient: a patient with several images counts once, and no patient's score hangs on who
    else is there (`filled_rows`).
    """
    return patient_means(_logits_alike(study, model, split), split)


def patient_means(logits: Tensor, split: Split) -> NDArray[np.float64]:
    """Logit of each patient's mean score, (n,) float64, from the logits of the rows, (m,) float64."""
    if len(logits) == split.patients:
        return logits.numpy()
    p = torch.sigmoid(logits)
    sums = torch.zeros(split.patients, dtype=torch.float64).index_add_(0, split.patient, p)
    count = torch.bincount(split.patient, minlength=split.patients)
    scores = torch.logit(sums / count, eps=1e-12)
    # The way through probabilities costs digits. A patient's score must not depend on whether some other patient of
    # the site has several rows, so one with a single row keeps its logit.
    single = count[split.patient] == 1
    scores[split.patient[single]] = logits[single]
    return scores.numpy()


class ScoreCache:
    """The last scores of one site by model and split, since an evaluation asks for the same ones several times."""

    def __init__(self, size: int = 32) -> None:
        self._size = size
        self._scores: OrderedDict[tuple[str, str, str], NDArray[np.float64]] = OrderedDict()

    def scores(
        self, study: Study, state: Mapping[str, NDArray[np.generic]], split: Split, split_name: str
    ) -> NDArray[np.float64]:
        """`patient_scores` of the model with this state, computed once."""
        # The study says how rows are read and by which network, so scores of two studies are never mixed.
        key = (study.hash, digest_arrays(state), split_name)
        if key not in self._scores:
            self._scores[key] = patient_scores(study, network(study, state), split)
            if len(self._scores) > self._size:
                self._scores.popitem(last=False)
        self._scores.move_to_end(key)
        return self._scores[key]
