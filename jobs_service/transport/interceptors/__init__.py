"""What every call passes, from the outside in: access log, errors, deadlines, authentication, decoding."""
