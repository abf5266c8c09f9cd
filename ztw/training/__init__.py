"""Training of the backbone, of ICs on a frozen backbone, or of both together."""
