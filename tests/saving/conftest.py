"""Tests of this folder compile many programs that run once."""

from tests.support.compilation import compiled_quickly  # noqa: F401
