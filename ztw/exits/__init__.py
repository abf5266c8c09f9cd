"""Exit rules, thresholds and ensembles as functions of logits, and early-exit inference."""
