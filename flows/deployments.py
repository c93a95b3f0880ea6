"""Deployments of the two flows: served by this process, or registered on a work pool."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.console import require_api
from flows.nightly import nightly
from flows.stylize import stylize_manifest
from nst_tasks.errors import SettingsError
from nst_tasks.inputs.options import SweepOptions
from nst_tasks.inputs.settings import Settings
from nst_tasks.planning.inbox import check_sweep

DEPLOYMENT_NAMES = ("nightly", "stylize-manifest")


def build_deployments(
    inbox: str, out: str, options: SweepOptions, settings: Settings, job_variables: dict[str, Any] | None = None
) -> list[RunnerDeployment]:
    """Build the deployments `nightly`, on a schedule with these options, and `stylize-manifest`, on demand.

    They refer to their flows by module, so that they run wherever the package is installed, in any working folder.

    Raises:
        SettingsError: The inbox or output may not be used, or the schedule is invalid.
    """
    check_sweep(inbox, out, options, settings)
    shared: dict[str, Any] = {"entrypoint_type": EntrypointType.MODULE_PATH, "job_variables": job_variables}
    built = [
        nightly.to_deployment(
            DEPLOYMENT_NAMES[0],
            schedule=_build_schedule(settings),
            parameters={"inbox": inbox, "out": out, "options": options.model_dump()},
            # an overlapping sweep is cancelled: the next night finds what it would have found
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            **shared,
        ),
        stylize_manifest.to_deployment(DEPLOYMENT_NAMES[1], **shared),
    ]
    return cast(list[RunnerDeployment], built)  # coroutines only inside a running event loop


def register(inbox: str, out: str, options: SweepOptions, settings: Settings, limit: int) -> Runner:
    """Register both deployments and return the runner that will serve them, at most `limit` runs at a time.

    Raises:
        SettingsError: A setting is wrong, or no Prefect API answers.
    """
    _require_server()
    # schedules stay active while nothing is served: missed nights are made up for, once, when serving starts again
    runner = Runner(limit=limit, pause_on_shutdown=False)
    for deployment in build_deployments(inbox, out, options, settings):
        runner.add_deployment(deployment)
    return runner


def serve(runner: Runner) -> None:
    """Serve until SIGTERM or SIGINT, each run in its own process; runs in progress are first stopped cleanly."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve_until_signal(runner))


async def _serve_until_signal(runner: Runner) -> None:
    loop, serve_task = asyncio.get_running_loop(), asyncio.create_task(runner.start())

    leaving: asyncio.Task[None] | None = None  # referenced here, because the event loop has only a weak reference

    async def stop_runner() -> None:
        if runner.started:
            await runner.astop()
        else:
            serve_task.cancel()

    def stop_runner_once() -> None:
        nonlocal leaving
        leaving = leaving or loop.create_task(stop_runner())

    await asyncio.sleep(0)  # the runner has now set its own handler, which does not wait for the runs; replace it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_runner_once)
    await serve_task


def deploy(inbox: str, out: str, options: SweepOptions, settings: Settings, pool: str, image: str | None) -> None:
    """Register both deployments on a work pool, whose workers start their runs.

    Raises:
        SettingsError: A setting is wrong, the pool does not exist, or no Prefect API answers.
    """
    _require_server()
    with get_client(sync_client=True) as client:
        try:
            variables = client.read_work_pool(pool).base_job_template.get("variables", {}).get("properties", {})
        except ObjectNotFound as error:
            raise SettingsError(
                f"--pool: there is no work pool {pool!r}; create it with: prefect work-pool create {pool} --type process"
            ) from error
    if image and "image" not in variables:
        raise SettingsError(f"--image: the work pool {pool!r} starts no containers; leave it out, or name another pool")
    for deployment in build_deployments(inbox, out, options, settings, {"image": image} if image else None):
        deployment.work_pool_name = pool
        deployment.apply()


def _require_server() -> None:
    if require_api() is None:
        raise SettingsError(
            "PREFECT_API_URL: is not set, and a schedule needs a server that lasts; start one with prefect server start, "
            "and set it to http://HOST:4200/api"
        )


def _build_schedule(configured: Settings) -> Any:
    """Build the schedule of `nightly`.

    Raises:
        SettingsError: The cron expression or the time zone is invalid.
    """
    problems = []
    try:
        CronSchedule(cron=configured.cron)
    except ValueError:
        problems.append(
            f"--cron: {configured.cron!r} is no schedule; give minute, hour, day of the month, month and day of the week, "
            "such as 0 2 * * * (NST_CRON)"
        )
    try:
        CronSchedule(cron="0 2 * * *", timezone=configured.timezone)
    except ValueError:
        problems.append(
            f"--timezone: {configured.timezone!r} is no time zone; give a name such as UTC or Europe/Berlin (NST_TIMEZONE)"
        )
    if problems:
        raise SettingsError("\n".join(problems))
    return Cron(configured.cron, timezone=configured.timezone)
