"""Helpers that several folders of tests import."""
