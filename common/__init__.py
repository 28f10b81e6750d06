"""The mathematics and the contracts: studies, queries, losses, masks, fairness. No network, no patient data of its own."""
