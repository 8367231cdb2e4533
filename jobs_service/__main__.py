"""python -m jobs_service, the same as jobs-service."""

from jobs_service.cli import main

main()
