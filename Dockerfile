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
RUN for package in flows manifests nst_tasks nst_tasks/core nst_tasks/engine nst_tasks/images nst_tasks/inputs \
        nst_tasks/outputs nst_tasks/planning nst_tasks/storage; do mkdir -p $package && touch $package/__init__.py; done \
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
