"""Define the version of the package, in a file of its own, so that modules need not import `ztw`."""

__version__ = "0.1.0"
