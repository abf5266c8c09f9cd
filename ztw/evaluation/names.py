"""Names in results that several stages write and read. Imports no torch: tables must not wait for it."""

BACKBONE = "backbone alone"  # what others are compared with: its rows of measured times, its mark in figures
