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

from flows import server
from nst_tasks import __version__, devices, quiet
from nst_tasks.errors import ClusterError, SettingsError, in_brief, redact, without_secrets
from nst_tasks.request import Runner
from nst_tasks.settings import Settings

ANSWER_SECONDS = 10.0
"""Time limit for a cluster to answer and to show its first worker."""

CORES = 4
"""CPU cores that one worker keeps busy; on a GPU host with many cores, one worker would leave most of them idle."""


AHEAD = 1
"""Task runs submitted to a cluster beyond its slots, so that the next one waits where a slot becomes free."""


@dataclass(frozen=True)
class Workers:
    """Where batches run.

    Attributes:
        submit: Submits a task with its parameters and returns its future.
        window: Maximum number of task runs in flight.
        most_pairs: Maximum number of pairs in a batch.
        on_gpus: True if batches run on GPUs.
        elsewhere: True if batches run in other processes, which see neither the run's progress nor its stop signal.
    """

    submit: Callable[[Task[Any, Any], dict[str, Any]], PrefectFuture[Any]]
    window: int
    most_pairs: int
    on_gpus: bool = False
    elsewhere: bool = True


@contextlib.contextmanager
def opened(runner: Runner, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a runner, inside a flow run, until the run ends.

    Raises:
        SettingsError: The runner's package is not installed, or its cluster does not answer or has no suitable worker.
    """
    if runner == "threads":
        window = 3 * len(devices.names())  # one batch computing, one being read and one being written
        on_gpus = devices.are_gpus()
        most = devices.most_pairs(settings.batch, on_gpus)
        yield Workers(lambda task, parameters: task.submit(**parameters), window, most, on_gpus, elsewhere=False)
        return
    if importlib.util.find_spec(f"prefect_{runner}") is None:
        raise SettingsError(f"--runner {runner}: prefect-{runner} is not installed; add it with: pip install 'nst[{runner}]'")
    address = settings.dask_address if runner == "dask" else settings.ray_address
    _check(f"NST_{runner.upper()}_ADDRESS", address)
    with _api_for_workers(address), (_dask if runner == "dask" else _ray)(address, settings) as workers:
        yield workers


def result(future: PrefectFuture[Any]) -> Any:
    """Return the task's result, or the exception of the task or its cluster."""
    try:
        return future.result(raise_on_failure=False)
    except CancelledError:
        return ClusterError("the cluster's scheduler went away; start it again, and the same command goes on")
    except Exception as error:  # its workers died more often than the cluster allows
        return error


def _check(name: str, address: str) -> None:
    """Refuse an address at which nothing listens; the clusters' own clients retry for long and fail with many lines.

    Raises:
        SettingsError: The address holds a secret, has no host and port, or does not answer.
    """
    if not address:
        return
    if without_secrets(address) != address:
        raise SettingsError(f"{name}: {redact(address)} has a password or a query, which a log would show; leave it out")
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        if not (parts.hostname and parts.port):
            raise ValueError("it names no host and port")
        socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _silent(name, address, error) from None


def _silent(name: str, address: str, error: BaseException) -> SettingsError:
    """Return the error for a cluster that does not answer."""
    remedy = "start that cluster, correct the address, or unset it to start workers on this machine"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return SettingsError(f"{name}: {redact(address)!r} does not answer ({redact(why)}); {remedy}")


@contextlib.contextmanager
def _api_for_workers(address: str) -> Iterator[None]:
    """Set the API URL to which workers report in Prefect's context, which is sent with each batch.

    Raises:
        SettingsError: The cluster is remote, but no API is configured.
    """
    if PREFECT_API_URL.value() and not server.is_own():
        yield
        return
    if address:
        raise SettingsError("PREFECT_API_URL: not set, but workers elsewhere report to that API; start a server, and set it")
    with get_client(sync_client=True) as client:  # the server started for this run
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url}):  # otherwise each worker would start a server of its own
        yield


def _local_workers(settings: Settings) -> tuple[int, int]:
    """Return the number of workers to start on this machine, and how many of them get a GPU.

    There is one worker per GPU, or without GPUs one per four cores.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))  # listing logical devices would allocate their memory
    count = settings.local_workers or gpus or max(1, (os.cpu_count() or 1) // CORES)
    return count, min(count, gpus)


def check_versions(found: dict[str, Any]) -> None:
    """Refuse workers with another version of nst, which could compute other pixels, and workers without nst.

    Args:
        found: Version of nst, or the exception of its import, by worker.

    Raises:
        SettingsError: A worker cannot import nst, or has another version.
    """
    for worker, version in sorted(found.items()):
        if isinstance(version, BaseException):
            raise SettingsError(
                f"{worker}: that worker cannot import nst ({in_brief(version)}); install nst {__version__} there"
            )
        if version != __version__:
            raise SettingsError(f"{worker}: that worker has nst {version}, this is {__version__}; install one version on both")


def _leave_interrupts_to_the_run() -> None:
    """Ignore SIGINT: Ctrl-C in a terminal reaches workers too, but they stop by the stop signal of the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _dask(address: str, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a Dask cluster, one batch per GPU or worker."""
    import distributed
    from dask.base import annotate
    from prefect_dask.task_runners import DaskTaskRunner

    def own() -> distributed.SpecCluster:
        count, gpus = _local_workers(settings)
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
    options: dict[str, Any] = {"address": address} if address else {"cluster_class": own}
    with DaskTaskRunner(**options, client_kwargs={"timeout": ANSWER_SECONDS}) as runner:
        try:
            client = runner.client
            client.wait_for_workers(1, timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError) as error:
            raise _silent("NST_DASK_ADDRESS", address, error) from None
        check_versions(client.run(quiet.import_tensorflow, on_error="return"))
        if not address:
            client.run(_leave_interrupts_to_the_run)
        found = client.scheduler_info()["workers"].values()
        gpus = int(sum(worker["resources"].get("GPU", 0) for worker in found))

        def submit(task: Task[Any, Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
            with annotate(resources={"GPU": 1}) if gpus else contextlib.nullcontext():
                future: PrefectFuture[Any] = runner.submit(task, parameters=parameters)
            return future

        yield Workers(submit, (gpus or len(found)) + AHEAD, devices.most_pairs(settings.batch, gpus > 0), gpus > 0)


def on_nodes(nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, int]]:
    """Return how many batches the nodes of a Ray cluster run at once, and the resources of one batch: a GPU, or else cores.

    A batch never requires more cores than the largest node has: Ray would wait for such a node forever.
    """
    if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
        return gpus, {"num_gpus": 1}
    cores = [int(node.get("CPU", 0)) for node in nodes]
    wanted = max(1, min(CORES, max(cores, default=0)))
    return sum(has // wanted for has in cores), {"num_cpus": wanted}


@contextlib.contextmanager
def _ray(address: str, settings: Settings) -> Iterator[Workers]:
    """Yield the workers of a Ray cluster, one batch per GPU or per `CORES` cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        count, gpus = _local_workers(settings)
        options |= {"num_cpus": CORES * count, "num_gpus": gpus, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address or None, init_kwargs=options))
        except ConnectionError as error:
            raise _silent("NST_RAY_ADDRESS", address, error) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, asked_to_stop)  # Ray's handler would end the process at once
        slots, wants = on_nodes([node["Resources"] for node in ray.nodes() if node["Alive"]])
        if not slots:
            raise SettingsError(
                f"NST_RAY_ADDRESS: {redact(address)!r} has neither a GPU nor a core to give; start a worker there"
            )

        def submit(task: Task[Any, Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
            with remote_options(**wants):
                future: PrefectFuture[Any] = runner.submit(task, parameters=parameters)
            return future

        on_gpus = "num_gpus" in wants
        yield Workers(submit, slots + AHEAD, devices.most_pairs(settings.batch, on_gpus), on_gpus)
