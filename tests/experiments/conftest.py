"""Tests of the experiments compile many programs that run for a moment."""

from tests.support.compilation import compiled_quickly  # noqa: F401
