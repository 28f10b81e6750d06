"""The coordinator: the engine that drives a method, the transcript of released sums, and the report."""
