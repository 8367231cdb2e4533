"""Values, errors and pure functions; imports the standard library alone."""
