"""The ways to run a cell over time, one a file. README.md shows what each of them supports."""
