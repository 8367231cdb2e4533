"""What every call passes, from the outside in.

Admission, late headers, access log, errors, deadlines, authentication, answers, streams, open to all,
decoding.
"""
