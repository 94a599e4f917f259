"""The parts of `python -m experiments.lstm_vs_gru`."""
