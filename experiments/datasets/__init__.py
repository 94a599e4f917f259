"""The real data that experiments read. None is part of the project; `python -m experiments.datasets` lists it all.

A set that does not ship inside a package is looked for in one folder, the first of: the one given,
the environment variable `JAXRNN_DATA`, the user's cache. In it a file lies in the sub-folder with the set's
name, or beside it; plain, gzipped, or inside the archive that it is published in. Every file must be, byte for byte,
the published one. Nothing is unpickled or executed, and nothing is downloaded unless it is asked for.
"""

from experiments.datasets._files import MissingData, data_folder

__all__ = ["MissingData", "data_folder"]
