"""Reweighing: weights that make group and label independent (Kamiran & Calders, Knowl. Inf. Syst. 2012;33).

    w(a, y) = n_a n_y / (n n_ay)

from one release of cell counts; training on the weighted cross-entropy is otherwise unchanged. A cell that is rarer
than independence would have it weighs more. Under noise the weights come from the noisy counts, and every patient is
clipped after weighing.
"""

from __future__ import annotations

from equipoise.common import catalogue
from equipoise.common.cells import task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced
from equipoise.common.methods.reweighted import Fixed, Reweighted, plan_reweighted, run_reweighted, same_rounds
from equipoise.common.query import Query
from equipoise.common.study import Study


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order."""
    return [catalogue.cell_counts(study), *plan_reweighted(study, model, _parameters(study), None)]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts, weights, rounds."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    weights = task_weights(counts, "independent", p.weight_cap)
    model, notes = yield from run_reweighted(study, model, p, Fixed(weights), counts, None)
    names = [*study.primary.groups, "unknown"]
    rows = [[name, *(f"{w:.3f}" for w in row)] for name, row in zip(names, weights, strict=True)]
    facts = {"title": "Weights of the cells", "columns": ["group", "label 0", "label 1"], "rows": rows}
    return Outcome(model, {**notes, "facts": [facts]})


def _parameters(study: Study) -> Reweighted:
    return validate(Reweighted, study.method.parameters, "method")


METHOD = Method(
    name="reweighing",
    title="fine-tuning with weights that make group and label independent",
    paper="Kamiran & Calders, Knowledge and Information Systems 2012",
    travels="cell counts, then a round's change of the model, or (step whitened) its sum of clipped vectors",
    costs="10 rounds of the whole model",
    private="whitened rounds, weights from noisy counts",
    parameters=Reweighted,
    plan=plan,
    run=run,
    controls=plain_and_balanced(lambda study, loss: same_rounds(_parameters(study), study, loss)),
)
