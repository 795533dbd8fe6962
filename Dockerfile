# syntax=docker/dockerfile:1
# brim on a CPU:  docker build -t brim .
# on CUDA:        docker build -t brim --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /opt/brim
COPY constraints.txt requirements.lock ./
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
      -c constraints.txt torch \
    && pip install --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --no-deps .

# Not root; models from the hub are kept where a volume can be mounted, and runs are written to /runs.
RUN useradd --create-home --uid 1000 brim && mkdir /runs /cache && chown brim /runs /cache
USER 1000
ENV HF_HOME=/cache
VOLUME ["/cache"]
WORKDIR /runs
ENTRYPOINT ["brim"]
CMD ["--help"]
