# Device agent, for trying a fleet out on a server. On a phone it is installed as docs/agent-guide.md says.
# Build from the repository root:  docker build -f docker/device-agent.Dockerfile -t pocketfleet/device-agent .

FROM python:3.11.15-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/agent.txt /build/requirements.txt
RUN pip install --require-hashes --only-binary :all: -r /build/requirements.txt
# The package itself, so that the agent knows its version and has its command. Its build backend comes from the
# locked development set, installed apart from what the image keeps.
COPY requirements/dev.txt /build/dev.txt
RUN awk '/^setuptools==/ {found = 1} found; found && !/\\$/ {exit}' /build/dev.txt > /build/backend.txt \
    && pip install --require-hashes --target /build/backend -r /build/backend.txt
WORKDIR /build/source
COPY pyproject.toml README.md LICENSE ./
COPY device_agent ./device_agent
RUN PYTHONPATH=/build/backend pip install --no-deps --no-build-isolation .

FROM python:3.11.15-slim-bookworm
RUN groupadd --system --gid 10001 pocketfleet \
    && useradd --system --uid 10001 --gid pocketfleet --home-dir /var/lib/pocketfleet-agent --create-home \
       --shell /usr/sbin/nologin pocketfleet \
    && install --directory --mode 0700 --owner pocketfleet --group pocketfleet /agents
COPY --from=build /opt/venv /opt/venv
COPY docker/healthcheck.py docker/agent-entrypoint.sh /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    POCKETFLEET_AGENT_STATE_DIR=/var/lib/pocketfleet-agent \
    POCKETFLEET_AGENT_INFERENCE_PORT=8450
WORKDIR /var/lib/pocketfleet-agent
USER 10001:10001
VOLUME /var/lib/pocketfleet-agent
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/bin/healthcheck.py", "http", "http://127.0.0.1:8450/v2/health/live"]
CMD ["pocketfleet-agent", "run"]
