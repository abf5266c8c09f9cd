"""Logits, costs and metrics of a method; measured time."""
