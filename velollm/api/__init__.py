"""Dialects of clients, parsed and rendered without I/O."""
