"""What is measured before and after: integer tables summed over sites, for every model in the same way.

Each model is scored at three operating points: `rule`, the declared rule applied to the model itself; `base_rate`,
where it calls as many patients positive as the base model does (a collapsed or shifted model has no advantage there);
and `base_threshold`, the base model's own threshold. Thresholds are fixed before any test patient is counted, except
where a study asks for the median of the test scores (the synthetic benchmark's convention).

Where noise protects the patients, less is asked: histograms of few bins for the primary attribute alone, at edges from
the scores of the public pool, and no placements, since their sums have no private form.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.common import catalogue
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, StudyError
from equipoise.common.fairness.joint import pairs_of_joint
from equipoise.common.fairness.noise import HistogramNoise, anchored
from equipoise.common.fairness.tables import (
    Counts,
    Floats,
    Table,
    counts_after,
    counts_before,
    hybrid_edges,
    quantile_edges,
)
from equipoise.common.fairness.thresholds import (
    choose_threshold,
    logit_reached_by,
    match_selection_rate,
    nearest_edge,
    parse_rule,
)
from equipoise.common.headcount import Headcount
from equipoise.common.pool import Pool, network_of
from equipoise.common.query import Arrays, Query, SplitName, Sum
from equipoise.common.study import ScoreInputs, Study

BASE = "base"
POINTS = ("rule", "base_rate", "base_threshold")
ByAttribute = dict[str, NDArray[np.int64]]


@dataclass
class Measured:
    """The tables of an evaluation.

    Attributes:
        edges: inner edges of the score bins, logits.
        histograms: (model, split) -> attribute -> counts[g, y, bin].
        histogram_noise: (model, split) -> variance of the noise in each bin; 0 without privacy.
        thresholds: model -> logit threshold at each of POINTS.
        joints: (before, after) -> attribute -> counts[g, y, interval before, interval after].
        pairs: (before, after) -> attribute -> counts[point, g, y, decision before, decision after]; margins of joints.
        pair_noise: (before, after) -> variance of the noise in each cell of a pair table, (points, 1, 1, 2, 2).
        placements: model -> attribute -> sums of placements against the base, (G + 1, 2, 5).
        site_pairs: attribute -> counts[site, g, y, decision before, decision after] of base and method at the declared
            rule, in the order of `catalogue.sites_of`; empty unless the study asks for it (`evaluation.by_site`).
    """

    edges: Floats
    histograms: dict[tuple[str, str], ByAttribute] = field(default_factory=dict)
    histogram_noise: dict[tuple[str, str], float] = field(default_factory=dict)
    thresholds: dict[str, Floats] = field(default_factory=dict)
    joints: dict[tuple[str, str], ByAttribute] = field(default_factory=dict)
    pairs: dict[tuple[str, str], ByAttribute] = field(default_factory=dict)
    pair_noise: dict[tuple[str, str], Floats] = field(default_factory=dict)
    placements: dict[str, dict[str, Floats]] = field(default_factory=dict)
    site_pairs: ByAttribute = field(default_factory=dict)

    def add_joint(self, before: str, after: str, joint: ByAttribute, noise: float) -> None:
        """Take in a decision table, whose cells carry noise of this variance, with its pair tables."""
        sides = self.thresholds[before], self.thresholds[after]
        self.joints[before, after] = joint
        self.pairs[before, after] = {name: pairs_of_joint(table, *sides)[0] for name, table in joint.items()}
        summed = pairs_of_joint(next(iter(joint.values())), *sides)[1]
        self.pair_noise[before, after] = noise * summed.astype(np.float64)

    def decisions(self, model: str, attribute: str) -> tuple[Counts, Floats]:
        """counts[point, g, y, decision] of a model, from its pair table with the base, and variances of their noise."""
        pair = next(found for found in self.pairs if found[0] == BASE and model in (BASE, found[1]))
        side = counts_before if model == BASE else counts_after
        return side(self.pairs[pair][attribute]), side(self.pair_noise[pair])

    def scores(self, model: str, attribute: str) -> tuple[Table, float | HistogramNoise]:
        """A model's histogram of the test scores, counts[g, y, bin], and its noise.

        Under noise the decision table says how many patients a group has, more precisely than the bins' sum.
        """
        hist, noise = self.histograms[model, "test"][attribute], self.histogram_noise.get((model, "test"), 0.0)
        if noise == 0.0:
            return hist, 0.0
        pair = (BASE, model) if model != BASE else next(found for found in self.pairs if found[0] == BASE)
        return anchored(hist, noise, self.pairs[pair][attribute][0], self.pair_noise[pair][0])

    def score_pair(
        self, before: str, after: str, attribute: str
    ) -> tuple[Table, Table, float | HistogramNoise, Counts | None]:
        """Two models' histograms of the same test patients, their common noise, and the decision table that pairs them.

        Without noise there is no need of the table where placements were summed; it serves comparisons without them.
        """
        pair = before, after
        hists = [self.histograms[model, "test"][attribute] for model in pair]
        noise = max(self.histogram_noise.get((model, "test"), 0.0) for model in pair)
        joint = self.joints[pair][attribute]
        if noise == 0.0:
            return hists[0], hists[1], 0.0, joint
        table, variances = self.pairs[pair][attribute][0], self.pair_noise[pair][0]
        (first, blur), (second, _) = (anchored(hist, noise, table, variances) for hist in hists)
        return first, second, blur, joint

    def choose_thresholds(self, study: Study, model: str) -> None:
        """Fix the model's operating points from histograms that are there (the base model's come first)."""
        primary = study.primary.name
        rule, match = study.evaluation.threshold, study.evaluation.rate_match

        def pooled(name: str, split: str) -> Counts:
            return self.histograms[name, split][primary]

        def noise(split: str) -> float:
            return self.histogram_noise.get((model, split), 0.0)

        if parse_rule(rule.rule).needs_histogram:
            own = choose_threshold(rule.rule, pooled(model, rule.source), self.edges, noise=noise(rule.source))
        else:
            own = choose_threshold(rule.rule, np.zeros((1, 2, 1), dtype=np.int64), self.edges)
        base = own if model == BASE else float(self.thresholds[BASE][0])
        if match.rule != "base_rate":
            matched = choose_threshold(match.rule, pooled(model, match.source), self.edges, noise=noise(match.source))
        elif model == BASE or study.audits_one_model:
            matched = own
        else:
            matched = match_selection_rate(
                pooled(model, match.source), self.edges, pooled(BASE, match.source), base, noise=noise(match.source)
            )
        self.thresholds[model] = np.array([own, matched, base])


def check_rule(study: Study) -> None:
    """Whether the rule of the threshold can be used.

    Raises:
        StudyError: unknown rule, or one that follows the base model, which needs a rule of its own.
    """
    rule = study.evaluation.threshold.rule
    try:
        parsed = parse_rule(rule)
    except StudyError as error:
        raise StudyError(f"evaluation.{error}") from None
    if parsed.kind == "base_rate":
        raise StudyError(
            "evaluation.threshold.rule='base_rate': it follows the base model, which needs a rule of its own; write "
            "another rule, as in 'sens>=0.9'"
        )


def check_by_site(study: Study) -> None:
    """Whether hospitals' own tables can be asked for.

    Raises:
        StudyError: under noise, or without the hospitals' names in the study.
    """
    if not study.evaluation.by_site:
        return
    if study.privacy.private:
        raise StudyError(
            "evaluation.by_site=true: a hospital's own table has no private form yet; leave it out, or write "
            "privacy.mode: none where the hospitals' site files allow it"
        )
    if not study.sites.declared_patients and study.simulation is None:
        raise StudyError(
            "evaluation.by_site=true: sites.declared_patients is missing; it names the hospitals that get a place"
        )


def check_min_cell(study: Study) -> None:
    """Whether small counts can be hidden as the study asks.

    Raises:
        StudyError: under noise, whose counts are not the patients'.
    """
    if study.privacy.private and study.evaluation.min_cell:
        raise StudyError(
            f"evaluation.min_cell={study.evaluation.min_cell}: under privacy.mode={study.privacy.mode} counts carry "
            "noise and are safe to print; leave it out, or write 0"
        )


def splits_needed(study: Study) -> list[SplitName]:
    """Splits whose histograms an evaluation needs."""
    evaluation = study.evaluation
    needed: set[SplitName] = {"test"}
    if not (study.audits_one_model and evaluation.rate_match.rule == "base_rate"):
        needed.add(evaluation.rate_match.source)
    if parse_rule(evaluation.threshold.rule).needs_histogram:
        needed.add(evaluation.threshold.source)
    return sorted(needed, reverse=True)  # validation before test


def comparisons(models: list[str], method: str | None) -> list[tuple[str, str]]:
    """Models whose decisions are tabled together: the base with each, and each control with the method."""
    others = [model for model in models if model != BASE]
    against_base = [(BASE, model) for model in others]
    return against_base + [(control, method) for control in others if method is not None and control != method]


def plan(study: Study, models: list[str], method: str | None) -> list[Query]:
    """Every query of an evaluation, in order."""
    histograms = [catalogue.score_histogram(study, split, model) for split in splits_needed(study) for model in models]
    tables = [
        catalogue.decision_table(study, before, after, len(POINTS)) for before, after in comparisons(models, method)
    ]
    if study.privacy.private:
        return histograms + tables
    placements = [catalogue.placement_sums(study, BASE, model) for model in models if model != BASE]
    return histograms + tables + placements + _site_tables(study, method)


def _site_tables(study: Study, method: str | None) -> list[Query]:
    return [catalogue.site_table(study, BASE, method)] if study.evaluation.by_site and method is not None else []


def evaluate(study: Study, models: Mapping[str, Classifier], method: str | None) -> Generator[Query, Sum, Measured]:
    """Measure `models`, of which `base` is the first; `method` is compared with every control.

    Raises:
        DataError: there is no positive or no negative test patient anywhere, so nothing can be measured.
        QuorumError: exact tables of the same patients disagree.
    """
    names, headcount = list(models), Headcount()
    measured = Measured(_edges(study, models))
    edges: Arrays = {"edges": measured.edges}
    for split in splits_needed(study):
        for name in names:
            query = catalogue.score_histogram(study, split, name)
            total = yield query.with_inputs(**models[name].inputs(), edges=edges)
            headcount.check(total)
            measured.histograms[name, split] = {attribute: total.count(attribute) for attribute in query.blocks}
            measured.histogram_noise[name, split] = total.noise_variance
        _check_labels(study, measured.histograms[BASE, split][study.primary.name], split)
    for name in names:
        measured.choose_thresholds(study, name)
    for before, after in comparisons(names, method):
        thresholds = np.stack([measured.thresholds[before], measured.thresholds[after]], axis=1)
        query = catalogue.decision_table(study, before, after, len(POINTS))
        total = yield query.with_inputs(
            **models[before].inputs("before"), **models[after].inputs("after"), thresholds={"thresholds": thresholds}
        )
        headcount.check(total)
        joint = {a.name: total.count(a.name) for a in study.attributes}
        measured.add_joint(before, after, joint, total.noise_variance)
    if study.privacy.private:
        return measured
    for name in names[1:]:
        pooled = {
            f"{role}.{a.name}": measured.histograms[model, "test"][a.name]
            for role, model in (("before", BASE), ("after", name))
            for a in study.attributes
        }
        query = catalogue.placement_sums(study, BASE, name)
        total = yield query.with_inputs(
            **models[BASE].inputs("before"), **models[name].inputs("after"), edges=edges, histograms=pooled
        )
        measured.placements[name] = {a.name: total.value(a.name) for a in study.attributes}
    for query in _site_tables(study, method):
        after = query.parameters["after"]
        thresholds = np.array([[measured.thresholds[BASE][0], measured.thresholds[after][0]]])
        total = yield query.with_inputs(
            **models[BASE].inputs("before"), **models[after].inputs("after"), thresholds={"thresholds": thresholds}
        )
        headcount.check(total, label_axis=2)
        measured.site_pairs = {a.name: total.count(a.name) for a in study.attributes}
    return measured


def _edges(study: Study, models: Mapping[str, Classifier]) -> Floats:
    """Inner edges of the score bins: declared or fixed ones, or under noise quantiles of the public pool's scores.

    Among them is a threshold that the study names, so that a histogram cut there counts what is decided. It is public,
    so that it may stand in the place of the nearest quantile.
    """
    if study.declared_edges is not None:
        return np.array([logit_reached_by(edge) for edge in study.declared_edges])
    edges = _quantiles(study, models) if study.privacy.private else hybrid_edges(None, study.score_bins)
    rule = parse_rule(study.evaluation.threshold.rule)
    if not rule.needs_histogram:
        named = logit_reached_by(rule.value)
        edges[nearest_edge(edges, named)] = named
    return edges


def _quantiles(study: Study, models: Mapping[str, Classifier]) -> Floats:
    if isinstance(study.inputs, ScoreInputs):
        raise StudyError(
            "inputs.edges is missing: under noise the score bins have to be declared, for instance at the deciles of "
            f"published scores ({study.score_bins - 1} probabilities)"
        )
    pool = Pool.of(study)
    scores = [pool.scores(network_of(study, model)).numpy() for model in models.values()]
    return quantile_edges(np.concatenate(scores), study.score_bins)


def _check_labels(study: Study, histogram: Counts, split: str) -> None:
    negatives, positives = histogram.sum(axis=(0, 2))
    if min(negatives, positives) == 0:
        lacking = "positive" if positives == 0 else "negative"
        if study.privacy.private:
            raise DataError(
                f"the noisy counts find no {lacking} patient in the {split} split; so few patients need a larger "
                "privacy.epsilon. What was released is spent"
            )
        raise DataError(
            f"no {lacking} patient in the {split} split of any site (label column {study.label.column!r}, positive = "
            f"{study.label.positive}); check label.positive against the manifests"
        )
