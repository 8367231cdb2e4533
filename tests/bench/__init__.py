"""Measures the service: scripts/bench."""
