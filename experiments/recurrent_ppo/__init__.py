"""The parts of `python -m experiments.recurrent_ppo`."""
