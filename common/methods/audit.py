"""Audit: a classifier is measured and nothing is trained.

One model alone, or two: the model as delivered and another, which somebody else has made of it (`after`, a file of
weights for the same network) or whose scores the hospitals have in a column (`inputs.kind: score`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from equipoise.common.canonical import sha256
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import ModelError
from equipoise.common.methods.method import Method, Outcome, Steps
from equipoise.common.query import Query
from equipoise.common.study import Study, Weights


class Audit(Strict):
    """An audit has no parameters of its own; the second model is `model.after` of the study."""


def plan(study: Study, model: Classifier) -> list[Query]:
    """Nothing is asked before the evaluation."""
    validate(Audit, study.method.parameters, "method")
    return []


def run(study: Study, model: Classifier) -> Steps:
    """The second model; the first again where there is none."""
    after = study.model.after
    yield from ()
    return Outcome(model if after is None else model.with_values(_weights(after, model)))


def _weights(named: Weights, model: Classifier) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]:
    where = f"model.after.path={named.path}"
    try:
        content = Path(named.path).read_bytes()
        state = load(content)
    except (OSError, SafetensorError):
        raise ModelError(f"{where}: no readable safetensors file there") from None
    if named.sha256 not in (None, sha256(content)):
        raise ModelError(f"{where}: the file has another digest than the study declares; use the declared file")
    if {name: value.shape for name, value in state.items()} != {name: v.shape for name, v in model.base.items()}:
        raise ModelError(f"{where}: other tensors than the network of {model.head!r} has; name weights of the same one")
    return {name: state[name] for name in model.parameters}


METHOD = Method(
    name="audit",
    title="measures a classifier, or two, and trains nothing",
    paper="equipoise evaluate (docs/audit.md)",
    travels="integer tables of test patients",
    costs="one pass over the test patients for each model",
    private="its tables carry noise",
    parameters=Audit,
    plan=plan,
    run=run,
    tuned={},
    trains=False,
)
