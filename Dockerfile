# The command `nst` in a container. GPU by default (CUDA libraries come as wheels; the host needs NVIDIA's driver and its
# container toolkit); for machines without one:  docker build --build-arg DEVICE=cpu -t nst:cpu .
#
#   docker run --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" nst run pairs.csv --out out
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG DEVICE=gpu
# more extras, such as ",dask", for a cluster's workers
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1

WORKDIR /app
# dependencies first, against packages that are still empty: this layer is built again only when they change
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir -p flows nst_tasks/core manifests \
    && touch flows/__init__.py nst_tasks/__init__.py nst_tasks/core/__init__.py manifests/__init__.py \
    && extras="$([ "$DEVICE" = gpu ] && echo demo,gpu || echo demo)" \
    && pip install --constraint constraints.txt ".[$extras$EXTRAS]"

COPY flows flows
COPY nst_tasks nst_tasks
COPY manifests manifests
RUN pip install --no-deps --force-reinstall .

# who names another user, to write into a folder of their own, still needs a home: Prefect and Keras keep files there
ENV HOME=/home/nst
RUN useradd --create-home --uid 10001 nst && chmod 1777 /home/nst && mkdir /data && chown nst /data
USER nst
WORKDIR /data
ENTRYPOINT ["nst"]
CMD ["--help"]
