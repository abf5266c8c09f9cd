"""The jobs of the workflow, one file per rule. A rule, its script and its job have the same name."""
