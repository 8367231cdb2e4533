"""The stubs of package jobs.v1: written by scripts/generate, not by hand."""
