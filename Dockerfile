# The Debian package of this checkout, installed on a small Debian: the same program, the same libraries.
# It builds with BuildKit and with the classic builder. To move to another Debian, change this one line.
ARG BASE=debian:trixie-20260918-slim

FROM ${BASE} AS package
WORKDIR /src
# What builds the package changes seldom: it has a layer of its own.
COPY scripts/setup scripts/
RUN scripts/setup deb
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY docs docs
COPY packaging/debian packaging/debian
COPY packaging/systemd packaging/systemd
COPY sikkerguard sikkerguard
COPY scripts/deb scripts/
RUN scripts/deb /package

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="SikkerGuard" \
    org.opencontainers.image.description="Blocks known attackers on a server, and never locks its owner out" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.vendor="The SikkerGuard authors" \
    org.opencontainers.image.url="https://sikkerapi.com" \
    org.opencontainers.image.base.name="docker.io/library/${BASE}"

COPY --from=package /package/*.deb /tmp/
# In the place of systemd, which nothing here starts, stands the small program that makes the package's user.
# Of the libraries only what the service imports is kept compiled, a quarter of all: the root is mounted read-only, and
# what is missing there is compiled at each start.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates systemd-standalone-sysusers /tmp/*.deb \
    && rm -r /tmp/*.deb /var/lib/dpkg/*-old \
    && find /var/cache /var/lib/apt/lists /var/log -type f -delete \
    && find /usr/lib/python3* -name __pycache__ -prune -exec rm -r {} + \
    && python3 -c "import importlib, pkgutil, sikkerguard; \
[importlib.import_module(found.name) for found in pkgutil.walk_packages(sikkerguard.__path__, 'sikkerguard.')]; \
import anyio._backends._asyncio, encodings.ascii, encodings.idna, h11, httpcore, httpx, iptc, pyroute2, sdnotify, systemd.journal" \
    && install -d -m 700 /var/lib/sikkerguard \
    && install -d -m 750 /run/sikkerguard

# Nothing of its own can be written but the state, so nothing is to try.
ENV PYTHONDONTWRITEBYTECODE=1
# Of the control socket, at which commands and the health check ask; where it can't be written, the socket is beside the
# state.
ENV RUNTIME_DIRECTORY=/run/sikkerguard
# Python itself is the first process: a signal reaches the service.
ENTRYPOINT ["/usr/bin/sikkerguard"]
CMD ["run"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["/usr/bin/sikkerguard", "health"]
