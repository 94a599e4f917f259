"""Tests of the analysis compile many programs that run only once."""

from tests.support.compilation import compiled_quickly  # noqa: F401
