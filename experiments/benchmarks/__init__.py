"""Benchmarks of time and memory: `python -m experiments.benchmarks.<name>`."""
