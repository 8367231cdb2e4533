"""The Jobs Service: creates, lists, shows, tracks and cancels the jobs of a data platform."""

__version__ = "0.1.0"
