"""The mathematics and the contracts: studies, queries, losses, masks, fairness. No network, no data of its own."""
