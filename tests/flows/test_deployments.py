"""Deployments: parameters, refusals, and the end of serving."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from prefect.client.schemas.objects import ConcurrencyLimitStrategy

from flows.deployments import build_deployments, serve
from nst_tasks.errors import SettingsError
from nst_tasks.inputs.options import SweepOptions
from nst_tasks.inputs.settings import Settings
from tests.support.commands import nst

NIGHT = ("s3://team/inbox", "s3://team/out", SweepOptions(size=256))


def test_deployment_names_module_and_forbids_overlap() -> None:
    nightly, on_demand = build_deployments(*NIGHT, Settings())
    assert (nightly.entrypoint, on_demand.entrypoint) == ("flows.nightly.nightly", "flows.stylize.stylize_manifest")
    assert nightly.parameters is not None
    assert nightly.parameters == {
        "inbox": "s3://team/inbox", "out": "s3://team/out", "options": SweepOptions(size=256).model_dump(),
    }  # fmt: skip
    assert nightly.concurrency_limit == 1
    assert nightly.concurrency_options.collision_strategy is ConcurrencyLimitStrategy.CANCEL_NEW  # type: ignore[union-attr]
    schedule = nightly.schedules[0].schedule  # type: ignore[index]
    assert (schedule.cron, schedule.timezone) == ("0 2 * * *", "UTC")  # type: ignore[union-attr]
    assert not on_demand.schedules


@pytest.mark.parametrize("k", [0, 1])
def test_a_deployments_parameters_make_a_nested_form(k: int) -> None:
    schema = build_deployments(*NIGHT, Settings())[k]._parameter_openapi_schema
    assert schema.required == (["inbox", "out"] if k == 0 else ["manifest", "out"])
    assert all(parameter["description"] for parameter in schema.properties.values())
    assert sorted(schema.properties, key=lambda name: schema.properties[name]["position"]) == [*schema.required, "options"]
    properties = schema.definitions["SweepOptions" if k == 0 else "RunOptions"]["properties"]
    assert [*properties][:3] == ["recipe", "size", "steps"]
    assert all(parameter["description"] for parameter in properties.values())
    assert properties["backbone"]["enum"] == ["vgg16-hed", "vgg19", "vgg16", "tiny"]
    assert properties["backbone"]["default"] == "vgg16-hed"
    assert (properties["size"]["minimum"], properties["size"]["maximum"]) == (64, 8192)
    assert {properties[name]["type"] for name in ("strict", "upscale")} == {"boolean"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cron": "61 * * * *"}, "--cron: '61 * * * *' is no schedule; give minute, hour,"),
        ({"cron": "nightly"}, "--cron: 'nightly' is no schedule"),
        ({"timezone": "Mars/Olympus"}, "--timezone: 'Mars/Olympus' is no time zone; give a name such as UTC"),
        ({"allowed_roots": ("s3://team/inbox",)}, "--out: s3://team/out: is not below NST_ALLOWED_ROOTS"),
    ],
)
def test_invalid_deployment_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_deployments(*NIGHT, Settings(**changes))
    assert str(caught.value).startswith(sentence)


def test_a_deployment_takes_no_secret() -> None:
    inbox, out, options = NIGHT
    secret_options = SweepOptions(weights="s3://team/w?hunter2")
    for arguments in (
        (inbox, "s3://k:hunter2@team/o", options),
        ("s3://team/i?hunter2", out, options),
        (inbox, out, secret_options),
    ):
        with pytest.raises(SettingsError, match="has a password or a query, which Prefect would store") as caught:
            build_deployments(*arguments, Settings())
        assert "hunter2" not in str(caught.value)


def test_second_stop_request_does_not_stop_serving_again() -> None:
    class FakeRunner:
        started = True
        stops = 0

        async def start(self) -> None:
            self.stopped = asyncio.Event()
            for _ in range(2):
                await asyncio.sleep(0)  # the handlers are in place by now
                os.kill(os.getpid(), signal.SIGTERM)
            await self.stopped.wait()

        async def astop(self) -> None:
            self.stops += 1
            await asyncio.sleep(0.1)
            self.stopped.set()

    runner, handler = FakeRunner(), signal.getsignal(signal.SIGTERM)
    try:
        serve(runner)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert runner.stops == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nightly", "--out", "out"], "--inbox: is missing; give it, or set NST_INBOX"),
        (["nightly", "--inbox", "in"], "--out: is missing; give it, or set NST_OUT"),
        (["nightly", "--inbox", "s3://u:p@b/in", "--out", "x"], "--inbox: s3://b/in has a password or a query, which Prefect"),
        (["serve", "--inbox", "a", "--out", "b"], "PREFECT_API_URL: is not set, and a schedule needs a server that lasts"),
        (["deploy", "--pool", "p", "--inbox", "a", "--out", "b"], "PREFECT_API_URL: is not set"),
        (["deploy", "--pool", "p", "--out", "b"], "--inbox: is missing; give it, or set NST_INBOX"),
    ],
)
def test_missing_setting_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    result = nst(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"nst: {sentence}")
    assert len(result.stderr.splitlines()) == 1
