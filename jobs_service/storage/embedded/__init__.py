"""The embedded Postgres: the service's own server, in its data folder, for when no database is configured.

    folder = DataFolder(path)
    folder.prepare()
    folder.lock()
    postgres = EmbeddedPostgres(folder, pg_bin=None)
    postgres.start()    # from the main thread
    ... postgres.url() ...
    postgres.stop()
    folder.unlock()

A second process, such as the command line while the service runs, needs url() alone.

    server.py       start, stop, watch: the life of one server process
    folder.py       the data folder: its lock, its password, its names
    cluster.py      making the database files, and refusing those of another version
    leftover.py     what an owner that was killed left behind
    binaries.py     where postgres and initdb are found, and copying them to where they can be run
    launch.py       starting a program as the account of Postgres, through exec_helper.py
"""

from jobs_service.storage.embedded.errors import DataFolderInUse, EmbeddedPostgresError
from jobs_service.storage.embedded.folder import DataFolder
from jobs_service.storage.embedded.server import EmbeddedPostgres

__all__ = ["DataFolder", "DataFolderInUse", "EmbeddedPostgres", "EmbeddedPostgresError"]
