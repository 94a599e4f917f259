"""How fast things are: `python -m experiments.benchmarks.<name>`."""
