# Quantize worker: parses, checks and quantises uploaded models. No Django, no database.
# Build from the repository root:  docker build -f docker/quantize-worker.Dockerfile -t pocketfleet/quantize-worker .

FROM python:3.11.15-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/worker.txt /build/requirements.txt
RUN pip install --require-hashes --only-binary :all: -r /build/requirements.txt
WORKDIR /app
COPY blobstore ./blobstore
COPY quantize_worker ./quantize_worker
RUN python -m compileall -q /app

FROM python:3.11.15-slim-bookworm
# bubblewrap: every parser of an upload runs in a namespace of its own (see docs/adr/0005).
# Not pinned: Debian's archive keeps only the newest build of a release, so a pin breaks at each security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 pocketfleet \
    && useradd --system --uid 10001 --gid pocketfleet --home-dir /var/lib/pocketfleet --create-home \
       --shell /usr/sbin/nologin pocketfleet
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY docker/healthcheck.py /usr/local/bin/healthcheck.py
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    POCKETFLEET_VAR=/var/lib/pocketfleet
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/pocketfleet
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --retries=3 \
    CMD ["python", "/usr/local/bin/healthcheck.py", "queue", "tailor.small"]
# All queues, for one machine that does everything; a worker for large models alone takes tailor.large.
CMD ["celery", "-A", "quantize_worker.app", "worker", "-Q", "tailor,tailor.small,tailor.large", "--pool", "threads", "--concurrency", "1", "--loglevel", "INFO"]
