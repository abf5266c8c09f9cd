"""Backbones, heads and the one early-exit network, with what they cost."""
