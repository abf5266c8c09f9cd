"""Evaluate methods: logits, costs, metrics, operating points, measured time."""
