"""Other libraries that the tests compare with live."""

import importlib
import os

import pytest


def peer(*names: str) -> None:
    """Skips the test if a package is missing. With JAXRNN_REQUIRE_PEERS=1, as in CI, it fails instead."""
    for name in names:
        if os.environ.get("JAXRNN_REQUIRE_PEERS") == "1":
            importlib.import_module(name)
        else:
            pytest.importorskip(name)
