# The service alone: a database, keys and certificates (or something in front that encrypts) come from outside.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/jobs-service
COPY pyproject.toml constraints.txt README.md ./
COPY generated generated
COPY jobs_service jobs_service
RUN /opt/jobs-service/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint constraints.txt ".[server,traces]" \
    && /opt/jobs-service/bin/python -m compileall -q /opt/jobs-service/lib

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 jobs \
    && useradd --uid 10001 --gid jobs --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin jobs
COPY --from=build /opt/jobs-service /opt/jobs-service
ENV PATH=/opt/jobs-service/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    JOBS_LISTEN=0.0.0.0:50051
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["jobs-service", "health"]
# The exec form: SIGTERM reaches the service itself, which drains.
ENTRYPOINT ["jobs-service"]
CMD ["serve"]
