"""The backbone, its ICs on the frozen backbone, or both together."""
