"""The version of odediff."""

__version__ = "0.1.0"
