"""Tests of the experiments compile many programs that run only briefly."""

from tests.support.compilation import compiled_quickly  # noqa: F401
