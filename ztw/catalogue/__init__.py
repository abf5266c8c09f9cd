"""Facts in tables: data sets, architectures, the names of parts. Imports no torch and nothing of a study."""
