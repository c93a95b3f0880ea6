"""Workers that run batches: threads of this process, or the workers of a Dask or Ray cluster.

A worker needs this package and access to the images and the output. Settings travel with each batch, credentials do not.
Without an address, a cluster is started on this machine and ends with the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import tensorflow as tf
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.tasks import Task

from flows import prefect_server
from nst_tasks import __version__
from nst_tasks.engine import devices
from nst_tasks.engine.runtime import import_tensorflow
from nst_tasks.errors import ClusterError, SettingsError, redact, strip_secrets, summarize
from nst_tasks.inputs.options import RunnerName
from nst_tasks.inputs.settings import Settings

CLUSTER_TIMEOUT_SECONDS = 10.0
"""Time limit for a cluster to answer and to show its first worker."""

CORES_PER_WORKER = 4
"""CPU cores that one worker keeps busy; on a GPU host with many cores, one worker would leave most of them idle."""


EXTRA_TASK_RUNS = 1
"""Task runs submitted to a cluster beyond its slots, so that the next one waits where a slot becomes free."""


@dataclass(frozen=True)
class Workers:
    """Where batches run.

    Attributes:
        submit: Submits a task with its parameters and returns its future.
        window: Maximum number of task runs in flight.
        max_pairs: Maximum number of pairs in a batch.
        on_gpus: True if batches run on GPUs.
        out_of_process: True if batches run in other processes, which see neither the run's progress nor its stop signal.
    """

    submit: Callable[[Task[Any, Any], dict[str, Any]], PrefectFuture[Any]]
    window: int
    max_pairs: int
    on_gpus: bool = False
    out_of_process: bool = True


@contextlib.contextmanager
def open_workers(runner: RunnerName, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a runner, inside a flow run, until the run ends.

    Raises:
        SettingsError: The runner's package is not installed, or its cluster does not answer or has no suitable worker.
    """
    if runner == "threads":
        window = 3 * len(devices.list_names())  # one batch computing, one being read and one being written
        on_gpus = devices.has_gpus()
        max_pairs = devices.limit_batch_size(settings.batch, on_gpus)
        yield Workers(lambda task, parameters: task.submit(**parameters), window, max_pairs, on_gpus, out_of_process=False)
        return
    if importlib.util.find_spec(f"prefect_{runner}") is None:
        raise SettingsError(f"--runner {runner}: prefect-{runner} is not installed; add it with: pip install 'nst[{runner}]'")
    address = settings.dask_address if runner == "dask" else settings.ray_address
    _check_address(f"NST_{runner.upper()}_ADDRESS", address)
    with _set_worker_api(address), (_open_dask if runner == "dask" else _open_ray)(address, settings) as workers:
        yield workers


def get_result(future: PrefectFuture[Any]) -> Any:
    """Return the task's result, or the exception of the task or its cluster."""
    try:
        return future.result(raise_on_failure=False)
    except CancelledError:
        return ClusterError("the cluster's scheduler went away; start it again, and the same command goes on")
    except Exception as error:  # its workers died more often than the cluster allows
        return error


def _check_address(name: str, address: str) -> None:
    """Refuse an address at which nothing listens; the clusters' own clients retry for long and fail with many lines.

    Raises:
        SettingsError: The address holds a secret, has no host and port, or does not answer.
    """
    if not address:
        return
    if strip_secrets(address) != address:
        raise SettingsError(f"{name}: {redact(address)} has a password or a query, which a log would show; leave it out")
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        if not (parts.hostname and parts.port):
            raise ValueError("it names no host and port")
        socket.create_connection((parts.hostname, parts.port), CLUSTER_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _build_no_answer_error(name, address, error) from None


def _build_no_answer_error(name: str, address: str, error: BaseException) -> SettingsError:
    """Return the error for a cluster that does not answer."""
    remedy = "start that cluster, correct the address, or unset it to start workers on this machine"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return SettingsError(f"{name}: {redact(address)!r} does not answer ({redact(why)}); {remedy}")


@contextlib.contextmanager
def _set_worker_api(address: str) -> Iterator[None]:
    """Set the API URL to which workers report in Prefect's context, which is sent with each batch.

    Raises:
        SettingsError: The cluster is remote, but no API is configured.
    """
    if PREFECT_API_URL.value() and not prefect_server.has_own_server():
        yield
        return
    if address:
        raise SettingsError("PREFECT_API_URL: not set, but workers elsewhere report to that API; start a server, and set it")
    with get_client(sync_client=True) as client:  # the server started for this run
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url}):  # otherwise each worker would start a server of its own
        yield


def _count_local_workers(settings: Settings) -> tuple[int, int]:
    """Return the number of workers to start on this machine, and how many of them get a GPU.

    There is one worker per GPU, or without GPUs one per four cores.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))  # listing logical devices would allocate their memory
    count = settings.local_workers or gpus or max(1, (os.cpu_count() or 1) // CORES_PER_WORKER)
    return count, min(count, gpus)


def check_versions(versions: dict[str, Any]) -> None:
    """Refuse workers with another version of nst, which could compute other pixels, and workers without nst.

    Args:
        versions: Version of nst, or the exception of its import, by worker.

    Raises:
        SettingsError: A worker cannot import nst, or has another version.
    """
    for worker, version in sorted(versions.items()):
        if isinstance(version, BaseException):
            raise SettingsError(
                f"{worker}: that worker cannot import nst ({summarize(version)}); install nst {__version__} there"
            )
        if version != __version__:
            raise SettingsError(f"{worker}: that worker has nst {version}, this is {__version__}; install one version on both")


def _ignore_interrupts() -> None:
    """Ignore SIGINT: Ctrl-C in a terminal reaches workers too, but they stop by the stop signal of the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _open_dask(address: str, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a Dask cluster, one batch per GPU or worker."""
    import distributed
    from dask.base import annotate
    from prefect_dask.task_runners import DaskTaskRunner

    def start_local_cluster() -> distributed.SpecCluster:
        count, gpus = _count_local_workers(settings)
        options: list[dict[str, Any]] = [
            {"env": {"CUDA_VISIBLE_DEVICES": str(k)}, "resources": {"GPU": 1}} if k < gpus else {} for k in range(gpus or count)
        ]
        usual = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "silence_logs": logging.CRITICAL}
        return distributed.SpecCluster(
            workers={k: {"cls": distributed.Nanny, "options": usual | more} for k, more in enumerate(options)},
            scheduler={
                "cls": distributed.Scheduler,
                "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"},
            },
            silence_logs=logging.CRITICAL,
        )

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the run reports its failures in one line
    options: dict[str, Any] = {"address": address} if address else {"cluster_class": start_local_cluster}
    with DaskTaskRunner(**options, client_kwargs={"timeout": CLUSTER_TIMEOUT_SECONDS}) as runner:
        try:
            client = runner.client
            client.wait_for_workers(1, timeout=CLUSTER_TIMEOUT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise _build_no_answer_error("NST_DASK_ADDRESS", address, error) from None
        check_versions(client.run(import_tensorflow, on_error="return"))
        if not address:
            client.run(_ignore_interrupts)
        worker_infos = client.scheduler_info()["workers"].values()
        gpus = int(sum(worker["resources"].get("GPU", 0) for worker in worker_infos))

        def submit(task: Task[Any, Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
            with annotate(resources={"GPU": 1}) if gpus else contextlib.nullcontext():
                future: PrefectFuture[Any] = runner.submit(task, parameters=parameters)
            return future

        yield Workers(
            submit, (gpus or len(worker_infos)) + EXTRA_TASK_RUNS, devices.limit_batch_size(settings.batch, gpus > 0), gpus > 0
        )


def count_ray_slots(nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, int]]:
    """Return how many batches the nodes of a Ray cluster run at once, and the resources of one batch: a GPU, or else cores.

    A batch never requires more cores than the largest node has: Ray would wait for such a node forever.
    """
    if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
        return gpus, {"num_gpus": 1}
    cores = [int(node.get("CPU", 0)) for node in nodes]
    wanted = max(1, min(CORES_PER_WORKER, max(cores, default=0)))
    return sum(node_cores // wanted for node_cores in cores), {"num_cpus": wanted}


@contextlib.contextmanager
def _open_ray(address: str, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a Ray cluster, one batch per GPU or per `CORES_PER_WORKER` cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        count, gpus = _count_local_workers(settings)
        options |= {
            "num_cpus": CORES_PER_WORKER * count,
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
        }
    previous_handler = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address or None, init_kwargs=options))
        except ConnectionError as error:
            raise _build_no_answer_error("NST_RAY_ADDRESS", address, error) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous_handler)  # Ray's handler would end the process at once
        slots, batch_resources = count_ray_slots([node["Resources"] for node in ray.nodes() if node["Alive"]])
        if not slots:
            raise SettingsError(
                f"NST_RAY_ADDRESS: {redact(address)!r} has neither a GPU nor a core to give; start a worker there"
            )

        def submit(task: Task[Any, Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
            with remote_options(**batch_resources):
                future: PrefectFuture[Any] = runner.submit(task, parameters=parameters)
            return future

        on_gpus = "num_gpus" in batch_resources
        yield Workers(submit, slots + EXTRA_TASK_RUNS, devices.limit_batch_size(settings.batch, on_gpus), on_gpus)
