"""What a command is made of: options and refusals, progress, figures, and the record of a run."""
