"""Addresses, prefixes and ranges of both families, as numbers and as text."""
