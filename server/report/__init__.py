"""The report of a run: one JSON and one self-contained page, from the released sums alone."""
