"""One file per rule of the workflow; a rule, its script, its job and its output bear one name."""
