"""The jobs of the workflow, one file per rule; a rule, its script, its job and its output share a name."""
