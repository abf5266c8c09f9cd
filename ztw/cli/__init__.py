"""The command `ztw`."""
