"""Which figures of a report may not be shown, since a small count of patients could be read from them.

Counts of exact tables below the study's smallest cell are hidden (`common/fairness/small_cells.py` has the rule), and
with them whatever gives them away. All of it follows from two kinds of counts, decided here once for the whole report:

    patients    of a group with a label, and of all groups together
    decisions   of those, how many a model flags at an operating point and how many it does not; both are hidden where
                one is small, since either gives the other

They are linked by sums that a reader knows: groups add up to all patients, the groups of an intersection to those of
its parts, hospitals to the sum over them. Further groups are hidden until no small count follows from these sums, first
the patients of unknown group, which no gap needs, then the smallest group, and all patients together last.

Every other figure is asked for what it is made of: a figure of decisions for its rows, labels, models and operating
point, a figure of scores for the patients of its groups. One that rests on something hidden is `suppressed`, without
its n. Where a score takes few values, as that of three grades of risk, an AUC, a Brier score or a curve is a sum of
few counts and gives a small one away: if some group has one at a value, all of these by group are suppressed.
Decision 0043 says what this protects and what it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.contrasts import GAPS
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.shares import RATES
from equipoise.common.fairness.small_cells import HIDDEN, Mask, Policy, suppressed
from equipoise.common.fairness.tables import Counts, counts_after, counts_before, group_names
from equipoise.common.study import Study
from equipoise.server.report.linked_sums import ALL, SiteSums, Sums

ROLES = ("base", "method")  # of the models that hospitals' own tables are about
_LABELS = {"tpr": (1,), "fnr": (1,), "fpr": (0,), "tnr": (0,)}  # that a rate counts; any other counts both
FEW_VALUES = 32  # bins that hold all patients, up to which a score is one of grades
_OF_SCORES = ("auc", "worst_group_auc", "auc_gap")

ByAttribute = Mapping[str, Mask]


@dataclass(frozen=True)
class Suppression:
    """See the module's text. Where the policy shows every count all of it is empty, and nothing is changed.

    Attributes:
        policy: what is small.
        groups: attribute -> names of its groups, `unknown` last.
        counts: attribute -> (G + 2, 2) patients by group and label, all patients in the last row.
        patients: attribute -> (G + 2, 2) which of them are hidden.
        decisions: (model, operating point) -> attribute -> (G + 2, 2) whether decisions on them are hidden.
        scores: attribute -> (G + 2,) whether figures of the scores of a row are hidden beside its patients.
        site_patients: attribute -> (sites, G + 1, 2) as `patients`, at each hospital.
        site_decisions: role -> attribute -> (sites, G + 1, 2) as `decisions`, at the declared rule.
    """

    policy: Policy
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts: Mapping[str, Counts] = field(default_factory=dict)
    patients: ByAttribute = field(default_factory=dict)
    decisions: Mapping[tuple[str, int], ByAttribute] = field(default_factory=dict)
    scores: ByAttribute = field(default_factory=dict)
    site_patients: ByAttribute = field(default_factory=dict)
    site_decisions: Mapping[str, ByAttribute] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, measured: Measured) -> Suppression:
        """What the study's policy hides of its exact tables; nothing of noisy ones."""
        policy = Policy(study.smallest_cell)
        if policy.minimum == 0:
            return cls(policy)
        sums = Sums.of(study.attributes)
        counts = sums.joined({a.name: measured.decisions(BASE, a.name)[0][0].sum(axis=-1) for a in study.attributes})
        patients = np.stack([sums.hidden_patients(counts[:, y], policy) for y in (0, 1)], axis=-1)
        site_patients: dict[str, Mask] = {}
        site_decisions: dict[str, dict[str, Mask]] = {}
        decided: dict[bytes, Mask] = {}  # by table, so that what is alike is hidden alike

        if measured.site_pairs:
            at_sites = SiteSums.of(sums, len(next(iter(measured.site_pairs.values()))))
            tables = [at_sites.joined(measured.site_pairs, side) for side in (counts_before, counts_after)]
            own = [at_sites.hidden_patients(tables[0][:, :, y].sum(axis=-1), patients[:, y], policy) for y in (0, 1)]
            at, patients = (np.stack(parts, axis=-1) for parts in zip(*own, strict=True))
            site_patients = sums.apart(at, axis=1)
            for role, table in zip(ROLES, tables, strict=True):
                total = table.sum(axis=0)
                own = []
                for y in (0, 1):
                    pooled = sums.hidden_decisions(total[:, y], patients[:, y], policy)
                    cells = table[:, :, y], at[..., y], patients[:, y], pooled
                    own.append(at_sites.hidden_decisions(*cells, policy))
                sites, mask = (np.stack(parts, axis=-1) for parts in zip(*own, strict=True))
                decided[total.tobytes()] = decided.get(total.tobytes(), mask) | mask
                site_decisions[role] = sums.apart(sites, axis=1)

        decisions: dict[tuple[str, int], dict[str, Mask]] = {}
        for model in dict.fromkeys(name for pair in measured.pairs for name in pair):
            by_point = {a.name: measured.decisions(model, a.name)[0] for a in study.attributes}
            for point in range(len(POINTS)):
                table = sums.joined({name: table[point] for name, table in by_point.items()})
                if table.tobytes() not in decided:
                    hidden = [sums.hidden_decisions(table[:, y], patients[:, y], policy) for y in (0, 1)]
                    decided[table.tobytes()] = np.stack(hidden, axis=-1)
                decisions[model, point] = sums.apart(decided[table.tobytes()])
        return cls(
            policy,
            {a.name: tuple(group_names(len(a.groups) + 1, a.groups)) for a in study.attributes},
            sums.apart(counts),
            sums.apart(patients),
            decisions,
            _graded(measured, decisions, policy),
            site_patients,
            site_decisions,
        )

    @property
    def active(self) -> bool:
        """Whether anything could be hidden."""
        return self.policy.minimum > 0

    @property
    def least(self) -> int:
        """Patients in a denominator from which a gap compares a group: never fewer than are shown."""
        return max(MINIMUM_PATIENTS, self.policy.minimum)

    def count(self, attribute: str, row: int, label: int | None = None) -> int | str:
        """Patients of a row with a label, or of both; `<k` or `hidden` in place of a number that is not shown."""
        counts, hidden = self.counts[attribute][row], self.patients[attribute][row]
        if label is None:
            # "<k" of the sum would say more of its parts than they say themselves.
            return HIDDEN if hidden.any() else int(counts.sum())
        if not hidden[label]:
            return int(counts[label])
        return f"<{self.policy.minimum}" if self.policy.small(counts)[label] else HIDDEN

    def at_most(self, attribute: str, row: int) -> int | None:
        """The most patients that a row can have, from what is shown of it; None where that has no end."""
        if not self.active:
            return None
        counts, hidden = self.counts[attribute][row], self.patients[attribute][row]
        if (hidden & ~self.policy.small(counts)).any():
            return None
        return int(np.where(hidden, self.policy.minimum - 1, counts).sum())

    def site_count(self, attribute: str, site: int, row: int, counts: Counts, label: int | None = None) -> int | str:
        """The same of one hospital, `hidden` alone in place of a number; `counts` are its patients by label."""
        hidden = np.zeros(2, dtype=bool) if not self.active else self.site_patients[attribute][site, row]
        if label is None:
            return HIDDEN if hidden.any() else int(counts.sum())
        return HIDDEN if hidden[label] else int(counts[label])

    def of_patients(self, found: Estimate, attribute: str, rows: Sequence[int]) -> Estimate:
        """A figure of the labels of some groups' patients."""
        return self._unless(self.hides(attribute, rows), found)

    def of_decisions(
        self, found: Estimate, attribute: str | None, rows: Sequence[int], models: Sequence[str], point: int
    ) -> Estimate:
        """A figure of the decisions of `models` on the patients of some groups; attribute None: of all patients."""
        labels = self.labels(found.metric.removesuffix("_change").removesuffix("_difference"))
        return self._unless(self.hides_decisions(attribute, rows, models, point, labels), found)

    def by_group(
        self, found: Sequence[Estimate], attribute: str, models: Sequence[str], point: int
    ) -> list[dict[str, Any]]:
        """A figure of decisions for each row, `unknown` last, as JSON values."""
        return [self.of_decisions(e, attribute, [row], models, point).to_json() for row, e in enumerate(found)]

    def of_gap(
        self, found: Estimate, attribute: str, models: Sequence[str], point: int, rates: Sequence[str] | None = None
    ) -> Estimate:
        """A largest difference between the declared groups of some rates, which its metric names unless `rates` does.

        Which groups it leaves out, and whether it is suppressed, follows from what is shown of their numbers alone.
        """
        if not self.active:
            return found
        names, left_out, kept_back = self.groups[attribute][:-1], [], False
        for rate in rates or GAPS[found.metric.removesuffix("_change")].rates:
            labels, what = list(self.labels(rate)), RATES[rate][2]
            for row, name in enumerate(names):
                counts = self.counts[attribute][row, labels]
                small = len(labels) == 1 and bool(self.policy.small(counts).any())
                if small:
                    left_out.append(f"{name}: fewer than {self.policy.minimum} {what}")
                elif self.hides(attribute, [row], labels):
                    kept_back = True
                elif lacking := shortage(int(counts.sum()), what, self.least):
                    left_out.append(f"{name}: {lacking}")
                else:
                    kept_back |= self.hides_decisions(attribute, [row], models, point, labels)
        if kept_back:
            return suppressed(found, self.policy)
        reason = "without " + "; ".join(left_out) if left_out else ""
        if found.value is None:
            return replace(found, reason=f"fewer than two groups to compare: {reason}")
        return replace(found, reason=reason)

    def hides_gap(self, metric: str, attribute: str) -> bool:
        """Whether a gap at any threshold would compare a group whose patients are hidden."""
        return any(
            self.hides(attribute, [row], self.labels(rate))
            for rate in GAPS[metric].rates
            for row in range(len(self.groups.get(attribute, ())) - 1)
        )

    def of_scores(self, found: Estimate, attribute: str | None, rows: Sequence[int]) -> Estimate:
        """A figure of the scores of some groups; attribute None: of all patients."""
        return self._unless(self.hides_scores(attribute, rows), found)

    def hides_scores(self, attribute: str | None, rows: Sequence[int]) -> bool:
        """Whether figures of the scores of some rows are hidden; attribute None: of all patients."""
        if not self.active:
            return False
        name, places = (next(iter(self.scores)), [ALL]) if attribute is None else (attribute, list(rows))
        return self.hides(attribute, rows) or bool(self.scores[name][places].any())

    def of_pair(self, found: Estimate, attribute: str, positives_of: int, negatives_of: int) -> Estimate:
        """A figure of the scores of one row's positives and another's negatives."""
        hidden = self.hides(attribute, [positives_of], [1]) or self.hides(attribute, [negatives_of], [0])
        graded = self.active and bool(self.scores[attribute][[positives_of, negatives_of]].any())
        return self._unless(hidden or graded, found)

    def of_all_scores(self, found: Estimate, attribute: str) -> Estimate:
        """A figure that compares the scores of all declared groups."""
        return self.of_scores(found, attribute, range(len(self.groups.get(attribute, ())) - 1))

    def scores_by_group(self, found: Sequence[Estimate], attribute: str) -> list[dict[str, Any]]:
        """A figure of scores for each row, `unknown` last, as JSON values."""
        return [self.of_scores(estimate, attribute, [row]).to_json() for row, estimate in enumerate(found)]

    @staticmethod
    def labels(rate: str) -> tuple[int, ...]:
        """Labels of the patients that a rate counts."""
        return _LABELS.get(rate, (0, 1))

    def hides_at_site(self, role: str, attribute: str, site: int, rows: Sequence[int], rate: str) -> bool:
        """Whether a rate of some rows at one hospital is hidden; `role` as in `ROLES`."""
        if not self.active:
            return False
        return bool(self.site_decisions[role][attribute][site][np.ix_(rows, self.labels(rate))].any())

    def figure(self, found: Estimate, attribute: str, models: Sequence[str], point: int) -> Estimate:
        """A figure of a verdict: a gap, an AUC or a rate, of a group, of all groups or of all patients."""
        if not self.active:
            return found
        metric = found.metric.removesuffix("_change")
        rows = None if found.group is None else [self.groups[attribute].index(found.group)]
        if metric in GAPS:
            return self.of_gap(found, attribute, models, point)
        if metric in _OF_SCORES:
            return self.of_all_scores(found, attribute) if rows is None else self.of_scores(found, attribute, rows)
        return self.of_decisions(found, None if rows is None else attribute, rows or [ALL], models, point)

    def hides(self, attribute: str | None, rows: Sequence[int], labels: Sequence[int] = (0, 1)) -> bool:
        """Whether the number of patients of some rows with some labels is hidden; attribute None: of all patients."""
        if not self.active:
            return False
        name, places = (next(iter(self.patients)), [ALL]) if attribute is None else (attribute, list(rows))
        return bool(self.patients[name][np.ix_(places, list(labels))].any())

    def hides_decisions(
        self,
        attribute: str | None,
        rows: Sequence[int],
        models: Sequence[str],
        point: int,
        labels: Sequence[int] = (0, 1),
    ) -> bool:
        """Whether decisions of a model on the patients of some rows are hidden; attribute None: on all patients."""
        if not self.active:
            return False
        name, places = (next(iter(self.patients)), [ALL]) if attribute is None else (attribute, list(rows))
        return any(bool(self.decisions[m, point][name][np.ix_(places, list(labels))].any()) for m in models)

    def _unless(self, hidden: bool, found: Estimate) -> Estimate:
        return suppressed(found, self.policy) if hidden else found


def _graded(measured: Measured, decisions: Mapping[tuple[str, int], ByAttribute], policy: Policy) -> ByAttribute:
    """attribute -> (G + 2,) rows whose figures of scores are hidden, all patients last.

    All groups of all attributes, where a model's score takes few values and some group has a small count at one: groups
    of one attribute add up to those of another at each value. The figures of all patients go with a hidden decision.
    """
    tables = [by_attribute for (_, split), by_attribute in measured.histograms.items() if split == "test"]
    counts = [hist for by_attribute in tables if _few_values(by_attribute) for hist in by_attribute.values()]
    groups = any(bool(policy.small(hist).any()) for hist in counts)
    everybody = any(bool(policy.small(hist.sum(axis=0)).any()) for hist in counts)
    found = {}
    for name, mask in decisions[BASE, 0].items():
        found[name] = np.full(len(mask), groups)
        told = any(bool(masks[name][ALL].any()) for masks in decisions.values())
        found[name][ALL] = groups and (everybody or told)
    return found


def _few_values(by_attribute: Mapping[str, Counts]) -> bool:
    hist = next(iter(by_attribute.values()))
    return int((hist.sum(axis=(0, 1)) > 0).sum()) <= FEW_VALUES
