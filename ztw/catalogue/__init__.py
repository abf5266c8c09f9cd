"""Metadata tables of data sets, architectures and parts. Imports no torch and nothing of a study."""
