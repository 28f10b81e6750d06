"""Benchmarks: each compares figures side by side in one run."""
