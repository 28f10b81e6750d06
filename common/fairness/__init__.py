"""Fairness of a classifier from counts of patients: tables, rates, gaps, AUC, thresholds, paired changes, verdict.

Sites contribute two integer tables per attribute, which add up over patients and therefore over sites:

- `hist[g, y, bin]`, patients by group, label and bin of the score;
- `pair[op, g, y, before, after]`, patients by operating point, group, label and both models' decisions.

`g` runs over the declared groups and then `unknown` (the last index), which is counted and shown but stays out of gaps
unless asked for. Everything else in this package is computed from sums of these tables, with an interval, a status and
a reason; a number that the patients do not support is `not_estimable` and its value is None, never 0.
"""
