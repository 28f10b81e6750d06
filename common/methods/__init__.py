"""The registry of methods: one line each.

A method is one file with a parameters class, a `plan` that lists every query it may ask at most, and one generator that
yields queries and receives their sums. Adding one touches its file, its test, a line here and a file in configs/.
"""

from __future__ import annotations

from equipoise.common.config import validate
from equipoise.common.errors import StudyError
from equipoise.common.evaluation import check_by_site, check_min_cell, check_rule
from equipoise.common.methods import (
    afl,
    audit,
    bmft,
    dfr,
    fairfed,
    fairprune,
    fairtune,
    fedfb,
    fedprox,
    fine_tune,
    group_dro,
    group_thresholds,
    private_head,
    q_ffl,
    reweighing,
    swift,
    zhang_zhou,
)
from equipoise.common.methods.method import Method
from equipoise.common.study import Study

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        swift.METHOD,
        bmft.METHOD,
        fine_tune.METHOD,
        private_head.METHOD,
        fairtune.METHOD,
        zhang_zhou.METHOD,
        fairprune.METHOD,
        dfr.METHOD,
        reweighing.METHOD,
        group_dro.METHOD,
        fedfb.METHOD,
        fedprox.METHOD,
        fairfed.METHOD,
        q_ffl.METHOD,
        afl.METHOD,
        group_thresholds.METHOD,
        audit.METHOD,
    )
}

# Controls that a study can name: the same code with one thing taken away. `pooled`, `local_only`, `server_only` and
# `auc_noise` need every hospital's data in one place, so only a simulation can run them.
METHOD_CONTROLS = ("no_mask", "constant", "permuted", "plain", "balanced", "head")
SIMULATION_CONTROLS = ("pooled", "local_only", "server_only", "auc_noise")


def resolve(study: Study) -> Method:
    """The study's method, with the study's parameters and the rule of its threshold checked.

    Raises:
        StudyError: unknown method, control or threshold rule, a parameter that the method does not have, or a second
            model that it does not measure.
    """
    check_rule(study)
    check_by_site(study)
    check_min_cell(study)
    method = METHODS.get(study.method.name)
    if method is None:
        raise StudyError(f"method.name={study.method.name}: no such method; there are: {', '.join(sorted(METHODS))}")
    validate(method.parameters, study.method.parameters, "method")
    if study.model.after is not None and method is not audit.METHOD:
        raise StudyError(
            f"model.after.path={study.model.after.path}: only method audit measures a second model, and "
            f"method.name={method.name}; leave model.after out"
        )
    known = (*METHOD_CONTROLS, *SIMULATION_CONTROLS)
    for control in study.method.controls:
        if control not in known:
            raise StudyError(f"method.controls: no control {control!r}; there are: {', '.join(known)}")
        if control in METHOD_CONTROLS and control_of(study, control) is None:
            raise StudyError(f"method.controls: {control!r} has no meaning for method {method.name!r}")
    return method


def control_of(study: Study, control: str) -> Study | None:
    """The study in which `control` takes the place of the method; None where the method has no such control."""
    build = METHODS[study.method.name].controls.get(control)
    return None if build is None else build(study)
