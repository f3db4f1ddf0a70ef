"""Data sets: their format, checks, simulation and import."""
