"""The version of the package, in its own file so that modules need not import `ztw` for it."""

__version__ = "0.1.0"
