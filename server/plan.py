"""`equipoise plan`: what a study asks of every site, what it costs there and how wide intervals become.

Nothing is read: the figures follow from the study alone, and hold at each of its hospitals alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from scipy.special import ndtri

from equipoise.common.privacy.accounting import PrivacyCost, cost_of, parallel_max
from equipoise.common.privacy.life import LifeFilter
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import SPLITS
from equipoise.common.study import Study
from equipoise.common.study_plan import STUDY, Entry, StudyPlan
from equipoise.common.study_simulation import SyntheticHospitals

Row = dict[str, Any]
SMALLER_GROUP = (20, 50, 100, 200, 400)  # positives, of whom the other group has three times as many
RATE = 0.8


def describe_plan(study: Study) -> Row:
    """The plan as JSON values.

    Keys: `queries`, one row for each arm, phase and query; `costs`, by account and split, with the account's whole;
    `widths`, expected half-widths of the gap in true positive rate; `mode`, `epsilon`, `delta`, `unit`.
    """
    plan = StudyPlan.of(study).calibrated(study)
    private = study.privacy.private
    return {
        "mode": study.privacy.mode,
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta if private else None,
        "unit": "patient (add or remove one, with all images)",
        "queries": plan_rows(plan, study),
        "costs": plan_costs(plan, study) if private else [],
        "widths": expected_widths(plan, study) if private else [],
    }


def plan_rows(plan: StudyPlan, study: Study) -> list[Row]:
    """One row for each arm, phase, query and payer, in order."""
    return [_row(list(found), study) for _, found in groupby(sorted_by_payer(plan), key=_alike)]


def _alike(entry: Entry) -> tuple[str, str, str, str, str]:
    return entry.arm, entry.query.phase, entry.query.name, entry.query.split, entry.account


def sorted_by_payer(plan: StudyPlan) -> list[Entry]:
    """The entries in their order, those of the evaluation by who pays."""
    arms = {entry.arm: number for number, entry in reversed(list(enumerate(plan.entries)))}
    payers = {account: number for number, account in enumerate(plan.accounts)}
    return sorted(plan.entries, key=lambda e: (arms[e.arm], payers[e.account], e.query.index))


def _row(entries: Sequence[Entry], study: Study) -> Row:
    asked = [entry.query for entry in entries]
    first = asked[0]
    row: Row = {
        "arm": entries[0].arm,
        "account": entries[0].account,
        "phase": first.phase,
        "query": first.name,
        "split": first.split,
        "budget": first.budget,
        "times": len(asked),
        "bytes_up": sum(8 * block.size for query in asked for block in query.blocks.values()),
        "epsilon": None,
    }
    if not first.private:
        return row
    cost = cost_of([query.plan for query in asked], study.privacy.delta)
    return row | {
        "epsilon": cost.epsilon,
        "epsilon_if_others_collude": cost.epsilon_if_others_collude,
        "law": first.plan.mechanism,
        "bound": first.plan.sensitivity,
        "noise": first.plan.noise,
        "step": first.plan.step,
    }


def plan_costs(plan: StudyPlan, study: Study) -> list[Row]:
    """By account: each split, then `all` (a patient is in one split, so the largest counts).

    `cap` is the least lifetime cap under which an account that has spent nothing admits the releases; caps are counted
    by a Renyi filter, which later studies may be chosen under, and ask more than the study's own epsilon.
    """
    rows = []
    for account in plan.accounts:
        splits = [split for split in SPLITS if plan.plans(split, account)]
        costs = [plan.cost(split, study.privacy.delta, account) for split in splits]
        if costs:
            caps = [least_cap(plan.plans(split, account), study.privacy.delta) for split in splits]
            rows += [
                _cost(account, split, cost) | {"cap": cap} for split, cost, cap in zip(splits, costs, caps, strict=True)
            ]
            rows.append(_cost(account, "all", parallel_max(costs)) | {"cap": max(caps)})
    return rows


def least_cap(plans: Sequence[ReleasePlan], delta: float) -> float:
    """The least cap on epsilon, to a hundredth, under which a life filter that is empty admits `plans`."""
    low, high = 0, 1
    while not _admits(high, plans, delta):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _admits(middle, plans, delta) else (middle, high)
    return high / 100


def _admits(hundredths: int, plans: Sequence[ReleasePlan], delta: float) -> bool:
    cap = hundredths / 100
    # Only the honest majority's view is asked here: the other cap is free to be larger.
    return LifeFilter.open(PrivacyCost(cap, 1e6, delta)).admits(plans)


def _cost(account: str, split: str, cost: PrivacyCost) -> Row:
    return {
        "account": account or "study",
        "charged": account == STUDY,
        "split": split,
        "epsilon": cost.epsilon,
        "epsilon_if_others_collude": cost.epsilon_if_others_collude,
    }


def expected_widths(plan: StudyPlan, study: Study) -> list[Row]:
    """Half-width of the 95 % interval of the gap in true positive rate, with the noise of all sites and without.

    For two groups with a rate of 0.8, of which the larger has three times the positives of the smaller: the numbers of
    patients are the hospitals' own and not known here.
    """
    tables = [e.query for e in plan.entries if e.account == STUDY and e.query.name == "decision_table"]
    if not tables:
        return []
    sites = _sites(study)
    # A count of decisions is the sum of cells of the joint table: of the two intervals before (the base model's points
    # mostly coincide), and of as many after as there are operating points at most.
    points = next(iter(tables[0].blocks.values())).shape[-1] - 1
    variance = 2 * points * sites * tables[0].plan.site_variance
    z = float(ndtri(0.975))
    rows = []
    for smaller in SMALLER_GROUP:
        halves = {
            name: z * math.sqrt(sum(_rate_variance(n, noise) for n in (smaller, 3 * smaller)))
            for name, noise in (("without_noise", 0.0), ("with_noise", variance))
        }
        rows.append({"positives_of_the_smaller_group": smaller, "sites": sites} | halves)
    return rows


def _sites(study: Study) -> int:
    if study.sites.declared_patients:
        return len(study.sites.declared_patients)
    simulated = None if study.simulation is None else study.simulation.hospitals
    return simulated.count if isinstance(simulated, SyntheticHospitals) else study.sites.minimum


def _rate_variance(n: int, noise: float) -> float:
    """Variance of a rate of n patients under noise on numerator and denominator (evaluation specification 4)."""
    return RATE * (1 - RATE) / n + noise * ((1 - RATE) ** 2 + RATE**2) / n**2
