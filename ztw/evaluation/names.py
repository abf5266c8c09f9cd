"""Names in results that several modules use. Imports no torch, so that tables load fast."""

BACKBONE = "backbone alone"  # the reference in measured times and figures
