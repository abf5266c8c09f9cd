"""Studies: typed settings, checked before anything runs. Imports no torch."""
