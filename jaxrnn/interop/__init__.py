"""Other libraries' weights and files, both ways."""
