"""Training: the loop, its checkpoints and logs, and the options that every training script has."""
