"""What every call passes, from the outside in.

Access log, errors, deadlines, authentication, streams, decoding.
"""
