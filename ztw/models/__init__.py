"""Backbones, heads and early-exit networks, their costs and their weights."""
