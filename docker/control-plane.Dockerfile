# Control plane (web), registry worker, periodic tasks and one-shot setup: one image, several commands.
# Build from the repository root:  docker build -f docker/control-plane.Dockerfile -t pocketfleet/control-plane .

FROM python:3.11.15-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/server.txt /build/requirements.txt
RUN pip install --require-hashes --only-binary :all: -r /build/requirements.txt
WORKDIR /app
COPY manage.py ./
COPY blobstore ./blobstore
COPY device_agent ./device_agent
COPY quantize_worker ./quantize_worker
COPY tenancy ./tenancy
COPY models_registry ./models_registry
COPY fleet ./fleet
# The embedded default's secret that the settings generate here stays in the throw-away folder.
RUN POCKETFLEET_VAR=/tmp/build POCKETFLEET_STATIC_ROOT=/app/static python manage.py collectstatic --noinput \
    && rm -rf /tmp/build \
    && python -m compileall -q /app

FROM python:3.11.15-slim-bookworm
RUN groupadd --system --gid 10001 pocketfleet \
    && useradd --system --uid 10001 --gid pocketfleet --home-dir /var/lib/pocketfleet --create-home \
       --shell /usr/sbin/nologin pocketfleet \
    && install --directory --mode 0700 --owner pocketfleet --group pocketfleet /agents /keys /web-keys
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY docker/healthcheck.py docker/setup.py /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    POCKETFLEET_VAR=/var/lib/pocketfleet \
    POCKETFLEET_KEYS=/keys \
    POCKETFLEET_STATIC_ROOT=/app/static
WORKDIR /app
# numeric, so that an orchestrator can prove that it is not root
USER 10001:10001
VOLUME /var/lib/pocketfleet
EXPOSE 8440
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "/usr/local/bin/healthcheck.py", "http", "http://127.0.0.1:8440/healthz"]
CMD ["granian", "--interface", "wsgi", "--host", "0.0.0.0", "--port", "8440", "--workers", "2", "--blocking-threads", "8", "fleet.wsgi:application"]
