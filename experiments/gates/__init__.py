"""The parts of `python -m experiments.gates`."""
