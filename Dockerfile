# The service's image. VARIANT=cpu (the default), gpu or ray chooses the lock it is made from:
#   docker build -t quiver:cpu .
#   docker build -t quiver:gpu --build-arg VARIANT=gpu .
#   docker build -t quiver:ray --build-arg VARIANT=ray .      a node of a Ray cluster (docs/ray.md)
# One chain of stages serves all, so no builder makes a large variant on the way to the small one.

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
ARG VARIANT=cpu
WORKDIR /src
# Two environments: the tools that build, and what the service runs on (without pip).
RUN python -m venv /build && python -m venv --without-pip /opt/quiver
COPY requirements/build.txt requirements/service-${VARIANT}.txt requirements/
RUN /build/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/build.txt
RUN /build/bin/pip --python /opt/quiver/bin/python install --no-cache-dir --no-deps --require-hashes \
    -r requirements/service-${VARIANT}.txt
COPY kernels kernels
RUN /build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels ./kernels \
    && /build/bin/pip --python /opt/quiver/bin/python install --no-cache-dir --no-deps --no-index /wheels/quiver_kernels-*.whl
# Machine code for two levels of x86-64, whichever this one has: a container need not compile when it starts.
RUN /opt/quiver/bin/python -m quiver_kernels.precompile /opt/quiver/kernels
# And of the CUDA sources for the usual GPUs, which takes neither a GPU nor its driver.
RUN if [ "${VARIANT}" = gpu ]; then /opt/quiver/bin/python -m quiver_kernels.gpu.ahead; fi
COPY service service
RUN /build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels ./service \
    && /build/bin/pip --python /opt/quiver/bin/python install --no-cache-dir --no-deps --no-index /wheels/quiver_service-*.whl
# Nodes of a cluster work on shards, which is the client's (quiver_client.sharded.on_ray).
COPY clients/python clients/python
RUN if [ "${VARIANT}" = ray ]; then \
    /build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels ./clients/python \
    && /build/bin/pip --python /opt/quiver/bin/python install --no-cache-dir --no-deps --no-index /wheels/quiver_client-*.whl; fi \
    && /build/bin/pip --python /opt/quiver/bin/python check

FROM ${BASE_IMAGE}
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="quiver" \
      org.opencontainers.image.description="Adaptive stochastic quantization as a service (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin quiver
COPY --from=builder /opt/quiver /opt/quiver
# Base images may come without bytecode of the standard library, and later none can be written: what a start imports.
RUN NUMBA_CACHE_DIR=/tmp/build /opt/quiver/bin/python -c \
    "import quiver_kernels.cpu.backend, quiver_service.healthcheck, quiver_service.server" \
    && rm -rf /tmp/build
RUN if [ "${VARIANT}" = ray ]; then RAY_USAGE_STATS_ENABLED=0 /opt/quiver/bin/python -c \
    "import ray.serve, ray.scripts.scripts, ray.dashboard.agent, quiver_client.sharded.on_ray"; fi
# The root file system may be read-only: whatever is cached goes below /tmp, and nothing depends on it.
ENV PATH=/opt/quiver/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    OMP_NUM_THREADS=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    CUPY_CACHE_DIR=/tmp/cupy \
    QUIVER_PRECOMPILED_DIR=/opt/quiver/kernels \
    QUIVER_HOST=0.0.0.0 \
    QUIVER_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "quiver_service.healthcheck"]
ENTRYPOINT ["python", "-m", "quiver_service"]
