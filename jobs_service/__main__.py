"""The command's start: jobs-service, and python -m jobs_service."""

import os
import sys

from jobs_service.transport.core_log import ask_for_handshakes


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["serve"]:
        ask_for_handshakes(os.environ)
    # Only now: grpc, which comes with it, reads its environment when it is imported.
    from jobs_service import cli

    cli.main()


if __name__ == "__main__":
    main()
