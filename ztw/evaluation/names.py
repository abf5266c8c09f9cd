"""Names in results that several stages write and read. Imports no torch: tables must not wait for it."""

BACKBONE = (
    "backbone alone"  # the row of measured times that others are compared with, and its mark in figures
)
