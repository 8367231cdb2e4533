"""The rules: what an operation does, who may do it, and in which transaction."""
