"""The public API, one package per version."""
