"""Known answers of other libraries: the script that makes them, and what it made."""
