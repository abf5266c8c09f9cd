"""The kinds of methods that the frontier compares. Imports no torch."""

STATIC = "static network"
CASCADE = "cascade of networks"
FIXED_EXIT = "fixed exit"
EARLY_EXITS = "early exits"
KINDS = (STATIC, CASCADE, FIXED_EXIT, EARLY_EXITS)
