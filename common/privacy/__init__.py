"""Patient-level differential privacy: noise, plans, accounting, the life of a data set."""
