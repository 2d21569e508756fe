"""Engines run the graphs of a model folder; every backend has the same small interface."""
