"""Every query there is: a closed list, since a free callable could break a proof.

Each function gives the template of one query; the site-side computation of the same name is in
`equipoise.client.computations`. `groups` counts the declared levels and `unknown`.

    tables     cell_counts, score_histogram, decision_table     integers; exact, or discrete noise
    vectors    block_sensitivities, whitened_gradient,          one clipped vector a patient; exact, or Gaussian noise
               cell_losses, group_fisher
    training   private_training                                 a site's own DP-SGD steps
               local_training, fair_training                    exact
    exact      all others                                       have no private form and are refused under noise
"""

from equipoise.common.catalogue.exact import (
    SITE_LEVEL,
    batch_sensitivities,
    cell_decisions,
    cell_statistics,
    gradient_sum,
    head_curve,
    head_moments,
    placement_sums,
    sensitivities,
    site_deviation,
    site_gradient,
    site_table,
)
from equipoise.common.catalogue.size import (
    SEARCH,
    declared_total,
    expected_patients,
    groups_of,
    sites_of,
)
from equipoise.common.catalogue.tables import (
    candidate_histogram,
    cell_counts,
    decision_table,
    score_histogram,
)
from equipoise.common.catalogue.training import (
    fair_training,
    local_training,
    private_training,
)
from equipoise.common.catalogue.vectors import (
    block_sensitivities,
    cell_losses,
    group_fisher,
    whitened_gradient,
)

__all__ = [
    "SEARCH",
    "SITE_LEVEL",
    "batch_sensitivities",
    "block_sensitivities",
    "candidate_histogram",
    "cell_counts",
    "cell_decisions",
    "cell_losses",
    "cell_statistics",
    "decision_table",
    "declared_total",
    "expected_patients",
    "fair_training",
    "gradient_sum",
    "group_fisher",
    "groups_of",
    "head_curve",
    "head_moments",
    "local_training",
    "placement_sums",
    "private_training",
    "score_histogram",
    "sensitivities",
    "site_deviation",
    "site_gradient",
    "site_table",
    "sites_of",
    "whitened_gradient",
]
