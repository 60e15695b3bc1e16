"""Backends: one file for each kind of engine."""
