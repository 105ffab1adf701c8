"""Benchmarks: one file each, run by `python -m pipelines.bench <name>`."""
