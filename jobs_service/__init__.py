"""The Jobs Service: creates, lists, shows, tracks and cancels the jobs of a data platform."""

import os

# Here, because gRPC reads it when it is imported. Its core would write to stderr by itself, past our log, and
# what strangers send as it is: a GOAWAY's text with line ends in it becomes lines of our log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

__version__ = "0.1.0"
