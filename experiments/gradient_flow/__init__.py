"""The parts of `python -m experiments.gradient_flow`."""
