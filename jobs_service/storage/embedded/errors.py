"""What can go wrong with the embedded Postgres, in words for the person who started the service."""


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot be used; the message says why and what to do."""


class DataFolderInUse(EmbeddedPostgresError):
    """Another process holds the data folder; the message names both."""
