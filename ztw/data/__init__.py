"""Image data sets: find, check and decode them once, then feed them to a network."""
