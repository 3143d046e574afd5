"""Measurements: they print figures and ratios, and assert nothing, since machines differ and are shared."""
