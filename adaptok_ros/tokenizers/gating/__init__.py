"""Encoding only what changed."""
