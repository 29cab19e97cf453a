"""The version. Packaging reads this file without importing the package."""

__version__ = "0.9.0"
