"""Tests of interoperability compile programs that run only once."""

from tests.support.compilation import compiled_quickly  # noqa: F401
