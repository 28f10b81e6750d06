"""A reader of a report who computes: every count and figure in it as an equation on the counts of patients behind it.

Knows the report, the policy, and which sums link the counts; where an equation needs a number of patients as a
coefficient it even gets the true one. What the equations leave open is found by linear programming.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import lil_array

from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.tables import Counts, counts_after, counts_before
from equipoise.common.study import Study
from tests.server.report_case import METHOD, SITES

Json = dict[str, Any]
Terms = dict[Hashable, float]
ALL = "all patients"
POOLED = "all hospitals"
_CELLS = {  # rate -> cells (label, decision) of its numerator and denominator
    "tpr": ([(1, 1)], [(1, 0), (1, 1)]),
    "fnr": ([(1, 0)], [(1, 0), (1, 1)]),
    "fpr": ([(0, 1)], [(0, 0), (0, 1)]),
    "tnr": ([(0, 0)], [(0, 0), (0, 1)]),
    "ppv": ([(1, 1)], [(1, 1), (0, 1)]),
    "npv": ([(0, 0)], [(0, 0), (1, 0)]),
    "selection_rate": ([(1, 1), (0, 1)], [(0, 0), (0, 1), (1, 0), (1, 1)]),
}


class Reader:
    """The equations of one report.

    Attributes:
        patients: true counts, (place, attribute, group, label) -> patients; `place` is a hospital or POOLED.
        decisions: true counts, (place, model, point, attribute, group, label, decision) -> patients.
    """

    def __init__(self, report: Json, study: Study, measured: Measured) -> None:
        self.report, self.study = report, study
        self.k = report["small_cells"]["minimum"]
        self.patients: dict[Hashable, int] = {}
        self.decisions: dict[Hashable, int] = {}
        self.equations: list[tuple[Terms, float]] = []
        self.marked: set[Hashable] = set()  # shown as `<k`
        self.somebody: set[Hashable] = set()  # `hidden` where a 0 would be shown
        self.shown: dict[tuple[str, str], int | str] = {}  # positives of a group, as written
        self._count(measured)
        self._link()
        self._link_intersections()
        self._read()

    # The true counts, and the sums that anybody knows.

    def _count(self, measured: Measured) -> None:
        for attribute in self.study.attributes:
            for model in dict.fromkeys(name for pair in measured.pairs for name in pair):
                for i, point in enumerate(POINTS):
                    table = measured.decisions(model, attribute.name)[0][i]
                    self._take(POOLED, model, point, attribute.name, table, (*attribute.groups, "unknown"))
            for site, pairs in enumerate(measured.site_pairs.get(attribute.name, [])):
                for model, side in ((BASE, counts_before), (METHOD, counts_after)):
                    table = side(pairs)
                    self._take(SITES[site], model, "rule", attribute.name, table, (*attribute.groups, "unknown"))

    def _take(self, place: str, model: str, point: str, name: str, table: Counts, groups: tuple[str, ...]) -> None:
        for group, cells in [*zip(groups, table, strict=True), (ALL, table.sum(axis=0))]:
            for y in (0, 1):
                self.patients[place, name, group, y] = int(cells[y].sum())
                for d in (0, 1):
                    self.decisions[place, model, point, name, group, y, d] = int(cells[y, d])

    def _link(self) -> None:
        """Groups add up to all patients, the same for each attribute; so do parts, hospitals and decisions."""
        first = self.study.attributes[0].name
        for key in [*self.patients, *self.decisions]:
            at = len(key) - (2 if key in self.patients else 3) - 1  # place of the attribute
            if key[at + 1] == ALL:
                groups = [k for k in self._alike(key, at + 1) if k[at + 1] != ALL]
                self.knows({**dict.fromkeys(groups, 1.0), key: -1.0})
                if key[at] != first:
                    self.knows({key: 1.0, (*key[:at], first, *key[at + 1 :]): -1.0})
            if key[0] == POOLED and (SITES[0], *key[1:]) in {**self.patients, **self.decisions}:
                self.knows({**{(site, *key[1:]): 1.0 for site in SITES}, key: -1.0})
        for key in self.decisions:
            if key[-1] == 1:
                place, _, _, name, group, y, _ = key
                self.knows({key: 1.0, (*key[:-1], 0): 1.0, (place, name, group, y): -1.0})

    def _link_intersections(self) -> None:
        """A part's group is the intersection's groups in it, and its patients whose other part is unknown."""
        for table in (self.patients, self.decisions):
            for key in list(table):
                at = len(key) - (2 if table is self.patients else 3) - 1
                for attribute in self.study.attributes:
                    if key[at] not in (attribute.of or ()):
                        continue
                    left = (*key[:at], f"{attribute.name}/{key[at]}", *key[at + 1 :])
                    groups = [group for group in attribute.groups if key[at + 1] in group.split(" & ")]
                    of = [(*key[:at], attribute.name, group, *key[at + 2 :]) for group in groups]
                    if key[at + 1] == "unknown":
                        part = next(a for a in self.study.attributes if a.name == key[at])
                        others = [(*left[: at + 1], group, *left[at + 2 :]) for group in part.groups]
                        whole = (*key[:at], attribute.name, "unknown", *key[at + 2 :])
                        self.knows({**dict.fromkeys([*others, key], 1.0), whole: -1.0})
                    elif key[at + 1] != ALL:
                        table[left] = table[key] - sum(table[k] for k in of)
                        self.knows({**dict.fromkeys([*of, left], 1.0), key: -1.0})
                        if table is self.decisions and key[-1] == 1:
                            self.knows({left: 1.0, (*left[:-1], 0): 1.0, (left[0], *left[3:-1]): -1.0})

    def _alike(self, key: Any, at: int) -> list[Any]:
        table = self.patients if key in self.patients else self.decisions
        return [k for k in table if len(k) == len(key) and k[:at] == key[:at] and k[at + 1 :] == key[at + 1 :]]

    def knows(self, terms: Terms, total: float = 0.0) -> None:
        self.equations.append((terms, total))

    # What stands in the report.

    def _read(self) -> None:
        for row in self.report["attributes"]:
            name = row["attribute"]
            for group in [*row["groups"], {**row, "group": ALL}]:
                self._headcount(POOLED, name, group["group"], group["n"], group["positives"])
        for model, figures in self.report["models"].items():
            for point, rates in figures["points"].items():
                for rate, estimate in rates.items():
                    self._rate(model, point, self.study.attributes[0].name, ALL, rate, estimate)
            self._n(self.study.attributes[0].name, [(ALL, 0), (ALL, 1)], figures["auc"])
            for name, found in figures["attributes"].items():
                for estimate in found["auc_by_group"]:
                    self._n(name, [(estimate["group"], 0), (estimate["group"], 1)], estimate)
                for point, at in found["points"].items():
                    for rate, estimates in at["by_group"].items():
                        for estimate in estimates:
                            self._rate(model, point, name, estimate["group"], rate, estimate)
        for change in self.report["changes"]:
            for name, found in change["attributes"].items():
                for estimate in found["auc_by_group"]:
                    self._n(name, [(estimate["group"], 0), (estimate["group"], 1)], estimate)
                for point, at in found["points"].items():
                    for rate, estimates in at["by_group"].items():
                        for estimate in estimates:
                            labels = {y for y, _ in _CELLS.get(rate, _CELLS["selection_rate"])[1]}
                            self._n(name, [(estimate["group"], y) for y in labels], estimate)
                            self._difference(change, point, name, rate, estimate)
        for model, by_attribute in self.report["decisions"].items():
            for name, found in by_attribute.items():
                self._further(model, name, found)
        for by_attribute in self.report["scores"].values():
            for name, found in by_attribute.items():
                self._scores(name, found)
        for name, found in (self.report["hospitals"] or {}).items():
            self._hospitals(name, found)

    def _headcount(self, place: str, name: str, group: str, n: int | str, positives: int | str) -> None:
        both = {(place, name, group, 0): 1.0, (place, name, group, 1): 1.0}
        if isinstance(n, int):
            self.knows(both, n)
        if isinstance(positives, int):
            self.knows({(place, name, group, 1): 1.0}, positives)
        elif positives.startswith("<"):
            self.marked.add((place, name, group, 1))
        elif place == POOLED or isinstance(self.shown[name, group], int):
            self.somebody.add((place, name, group, 1))
        if place == POOLED:
            self.shown[name, group] = positives

    def _n(self, name: str, cells: list[tuple[str, int]], estimate: Json, place: str = POOLED) -> None:
        if estimate["n"] is not None:
            self.knows({(place, name, group, y): 1.0 for group, y in cells}, estimate["n"])

    def _share(self, place: str, model: str, point: str, name: str, group: str, rate: str) -> Terms:
        """A rate as a linear form in its numerator, its denominator being known."""
        above, below = _CELLS[rate]
        n = sum(self.decisions[place, model, point, name, group, y, d] for y, d in below)
        return {(place, model, point, name, group, y, d): 1.0 / max(n, 1) for y, d in above}

    def _rate(self, model: str, point: str, name: str, group: str, rate: str, estimate: Json) -> None:
        if rate == "balanced_accuracy":
            self._n(name, [(group, 0), (group, 1)], estimate)
            if estimate["value"] is not None:
                half = [self._share(POOLED, model, point, name, group, r) for r in ("tpr", "tnr")]
                self.knows({**half[0], **half[1]}, 2 * estimate["value"])
            return
        above, below = _CELLS[rate]
        key = (POOLED, model, point, name, group)
        if estimate["n"] is not None:
            self.knows({(*key, *cell): 1.0 for cell in below}, estimate["n"])
        if estimate["value"] is not None:
            terms = {(*key, *cell): -estimate["value"] for cell in below}
            for cell in above:
                terms[*key, *cell] += 1.0
            self.knows(terms)

    def _difference(self, change: Json, point: str, name: str, rate: str, estimate: Json) -> None:
        if estimate["value"] is None:
            return
        halves = {"balanced_accuracy": ("tpr", "tnr")}.get(rate, (rate,))
        terms: Terms = {}
        for model, sign in ((change["after"], 1.0), (change["before"], -1.0)):
            for half in halves:
                share = self._share(POOLED, model, point, name, estimate["group"], half)
                terms |= {key: sign * value for key, value in share.items()}
        self.knows(terms, estimate["value"] * len(halves))

    def _further(self, model: str, name: str, found: Json) -> None:
        for rate, estimates in found["by_group"].items():
            for estimate in estimates:
                self._rate(model, "rule", name, estimate["group"], rate, estimate)
        groups = [estimate["group"] for estimate in found["by_group"]["tnr"]]
        weight = found["net_benefit"]["threshold"] / (1 - found["net_benefit"]["threshold"])
        for group, benefit, everybody in zip(
            groups, found["net_benefit"]["per_patient"], found["net_benefit"]["flag_everybody"], strict=True
        ):
            n = sum(self.patients[POOLED, name, group, y] for y in (0, 1))
            self._n(name, [(group, 0), (group, 1)], benefit)
            if benefit["value"] is not None:
                key = (POOLED, model, "rule", name, group)
                self.knows({(*key, 1, 1): 1.0 / n, (*key, 0, 1): -weight / n}, benefit["value"])
            if everybody is not None:
                self.knows({(POOLED, name, group, 1): 1.0}, (everybody + weight) / (1 + weight) * n)
        for value, (right, wrong) in {"ppv": ("tpr", "fpr"), "npv": ("tnr", "fnr")}.items():
            share = found["prevalence"]
            if share is not None and value == "npv":
                share = 1 - share
            for estimate in found["at_common_prevalence"][value]:
                self._n(name, [(estimate["group"], 0), (estimate["group"], 1)], estimate)
                if estimate["value"]:
                    assert share is not None, "a figure at a prevalence that is hidden"
                    one, other = (
                        self._share(POOLED, model, "rule", name, estimate["group"], r) for r in (right, wrong)
                    )
                    odds = share * (1 / estimate["value"] - 1)
                    terms = {key: odds * x for key, x in one.items()}
                    self.knows(terms | {key: -(1 - share) * x for key, x in other.items()})
        for rate, estimates in found["reference"]["differences"].items():
            for estimate in estimates:
                self._contrast(POOLED, model, name, rate, *estimate["group"].split(" less "), estimate)
        if found["unknown"] is not None and isinstance(found["unknown"]["patients"], int):
            both = {(POOLED, name, "unknown", 0): 1.0, (POOLED, name, "unknown", 1): 1.0}
            self.knows(both, found["unknown"]["patients"])

    def _contrast(
        self, place: str, model: str, name: str, rate: str, group: str, reference: str, estimate: Json
    ) -> None:
        labels = {y for y, _ in _CELLS[rate][1]}
        self._n(name, [(g, y) for g in (group, reference) for y in labels], estimate, place)
        if estimate["value"] is not None:
            one, other = (self._share(place, model, "rule", name, g, rate) for g in (group, reference))
            self.knows({**one, **{key: -x for key, x in other.items()}}, estimate["value"])

    def _scores(self, name: str, found: Json) -> None:
        for row in found["calibration"]:
            group = row["group"]
            self._n(name, [(group, 0), (group, 1)], row["ece"])
            self._n(name, [(group, 0), (group, 1)], row["citl"])
            if row["reliability"]:
                self.knows({(POOLED, name, group, 1): 1.0}, round(sum(p[1] * p[4] for p in row["reliability"])))
        for estimate in found["brier"]:
            self._n(name, [(estimate["group"], 0), (estimate["group"], 1)], estimate)
        for cell in found["xauc"]:
            self._n(name, [(cell["positives_of"], 1), (cell["negatives_of"], 0)], cell)

    def _hospitals(self, name: str, found: Json) -> None:
        for site in found["coverage"]:
            for group in site["groups"]:
                self._headcount(site["hospital"], name, group["group"], group["n"], group["positives"])
        for contrast in found["contrasts"]:
            rate, group, reference = (contrast[key] for key in ("rate", "group", "reference"))
            for role, model in (("base", BASE), ("method", METHOD)):
                part = contrast[role]
                self._contrast(POOLED, model, name, rate, group, reference, part["pooled"])
                weights: Terms = {}
                for site in part["hospitals"]:
                    self._contrast(site["hospital"], model, name, rate, group, reference, site["difference"])
                    label = _CELLS[rate][0][0][0]
                    n, m = (self.patients[site["hospital"], name, g, label] for g in (group, reference))
                    if site["weight"] is not None:
                        self.knows({(site["hospital"], name, group, label): 1.0}, n)
                        self.knows({(site["hospital"], name, reference, label): 1.0}, m)
                    for g, sign in ((group, 1.0), (reference, -1.0)):
                        share = self._share(site["hospital"], model, "rule", name, g, rate)
                        weights |= {key: sign * x * n * m / max(n + m, 1) for key, x in share.items()}
                if part["within"]["value"] is not None:
                    total = sum(
                        n * m / (n + m)
                        for site in SITES
                        for n, m in [[self.patients[site, name, g, label] for g in (group, reference)]]
                        if n and m
                    )
                    self.knows(weights, part["within"]["value"] * total)

    # What follows.

    def computed(self) -> Iterator[tuple[Hashable, int]]:
        """Small counts that the equations leave one value of."""
        true = {**self.patients, **self.decisions}
        systems: Mapping[Hashable, list[Hashable]] = {}
        for key in self.decisions:
            systems.setdefault(key[1:3], []).append(key)  # type: ignore[attr-defined]
        for of_model in systems.values():
            keys = [*self.patients, *of_model]
            place = {key: i for i, key in enumerate(keys)}
            rows = [(terms, total) for terms, total in self.equations if all(key in place for key in terms)]
            matrix, totals = lil_array((len(rows), len(keys))), np.zeros(len(rows))
            for i, (terms, total) in enumerate(rows):
                for key, coefficient in terms.items():
                    matrix[i, place[key]] = coefficient
                totals[i] = total
            whole = matrix.tocsr()
            far = 2 * max(true.values()) + 1000
            bounds = [(1, self.k - 1) if key in self.marked else (int(key in self.somebody), far) for key in keys]
            assert np.allclose(whole @ np.array([true[key] for key in keys]), totals, atol=1e-4), "a false equation"
            small = np.array([0 < true[key] < self.k for key in keys])
            values, rng = np.array([true[key] for key in keys]), np.random.default_rng(0)
            # Another solution in which a count is another one shows that it does not follow; a few show it for most.
            for _ in range(12):
                direction = np.where(small, rng.uniform(-1.0, 1.0, len(keys)), 0.0)
                found = linprog(direction, A_eq=whole, b_eq=totals, bounds=bounds, method="highs")
                if found.status == 0:
                    small &= np.abs(found.x - values) < 0.9
            for i in np.flatnonzero(small):
                direction = (np.arange(len(keys)) == i).astype(float)
                ends = [
                    linprog(sign * direction, A_eq=whole, b_eq=totals, bounds=bounds, method="highs")
                    for sign in (1.0, -1.0)
                ]
                known = [sign * end.fun for sign, end in zip((1.0, -1.0), ends, strict=True) if end.status == 0]
                if len(known) == 2 and known[1] - known[0] < 0.9:
                    yield keys[i], true[keys[i]]
