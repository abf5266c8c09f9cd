"""Pure functions of logits, and the one loop that really stops."""
