"""The package's version, in a file of its own: nothing inside imports the package's face for it."""

__version__ = "0.1.0"
