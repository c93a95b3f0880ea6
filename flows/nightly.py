"""The flow `nightly`: run every new or changed manifest of an inbox, and record the results in a ledger."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.urls import url_for

from flows import stylize
from flows.stylize import INTERRUPTED, REFUSED, WITH_FAILURES, BackboneName, Size, Steps
from flows.watching import plain, taken
from nst_tasks import claims, inbox, intake, ledger, presets, settings, storage, weights
from nst_tasks.core.method import Precision
from nst_tasks.errors import (
    ClusterError,
    InputError,
    Interrupted,
    NstError,
    StorageError,
    fit_to_log,
    is_pairs_own,
    redact,
)
from nst_tasks.inbox import Found
from nst_tasks.ledger import Entry, Result
from nst_tasks.progress import current, watch
from nst_tasks.reporting import Report
from nst_tasks.request import Request, Runner
from nst_tasks.settings import Run, Settings

T = TypeVar("T")

CLAIM = "nightly"
"""Key of the claim that a sweep holds below the ledger, so that no two sweeps write to one output at the same time.

Effective only if the store supports conditional creates.
"""

SHOWN = 500
"""Maximum number of manifests in a sweep's artifact."""


@dataclass(frozen=True)
class Swept:
    """Result of a sweep.

    Attributes:
        entries: New ledger entries by the manifest's file name.
        unchanged: Number of manifests that needed no run.
    """

    entries: dict[str, Entry]
    unchanged: int

    @property
    def broken(self) -> int:
        """Number of manifests run with any result but `good`."""
        return sum(entry.result is not Result.GOOD for entry in self.entries.values())

    @property
    def message(self) -> str:
        """Counts in one line."""
        counts = Counter(entry.result for entry in self.entries.values())
        return (
            f"{len(self.entries) + self.unchanged} manifests: {counts[Result.GOOD]} good, {counts[Result.FAILURES]} with "
            f"failures, {counts[Result.REFUSED]} refused, {counts[Result.FAILED]} failed, {self.unchanged} unchanged"
        )


def _flow_run_name() -> str:
    return f"nightly {datetime.now(UTC):%Y-%m-%d %H:%M}"


@flow(name="nightly", flow_run_name=_flow_run_name, persist_result=False)
def nightly(
    inbox: str,
    out: str,
    recipe: str = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision | None = None,
    plateau: float | None = None,
    backbone: BackboneName = weights.DEFAULT,
    weights_file: str | None = None,
    strict: bool = False,
    max_failures: str | None = None,
    upscale: bool = False,
    pair_timeout: float | None = None,
    runner: Runner = "threads",
) -> State[Swept]:
    """Stylize every manifest of an inbox that is new or has changed since its last good run, one after the other.

    Args:
        inbox: URI of the folder or prefix that holds the manifests; nothing in it is moved, deleted or written.
        out: URI of the folder for all output; each manifest has a subfolder of its own name.
        recipe: name that `nst recipes` lists, or URI of a TOML file; applies to rows that name no recipe.
        size: longest side of the results in pixels, for rows that give none; empty for the recipe's value.
        steps: optimization steps at full size, for rows that give none; empty for the recipe's value.
        precision: precision of the network, for rows that give none; empty for the recipe's value. auto means mixed, with
            bfloat16, where the flow's machine computes that fast.
        plateau: for rows that give none, end a level once its mean loss falls by no more than this share over 20 steps, such as
            0.01; 0 for never, empty for the recipe's value.
        backbone: network whose features are used.
        weights_file: URI of a Keras weights file for vgg19 or vgg16.
        strict: run nothing of a manifest that has a rejected row.
        max_failures: a manifest's run ends Failed if more rows than this fail, such as 10 or 5%.
        upscale: enlarge images that are smaller than the size.
        pair_timeout: seconds of compute after which a pair fails; empty for no limit.
        runner: where batches run: in threads of the flow's process, or on the workers of a Dask or Ray cluster.
    """
    request = Request(
        manifest=storage.absolute(inbox),
        out=storage.absolute(out),
        recipe=intake.located(recipe),
        size=size,
        steps=steps,
        backbone=backbone,
        weights=storage.absolute(weights_file) if weights_file else None,
        strict=strict,
        max_failures=max_failures,
        upscale=upscale,
        pair_timeout=pair_timeout,
        runner=runner,
        precision=precision,
        plateau=plateau,
    )
    observer = watch()
    current.set(observer)
    try:
        swept = sweep(request, settings.from_environment())
    except TerminationSignal:  # SIGTERM, as Prefect delivers it
        observer.stop.set()
        raise
    except InputError as error:
        return Failed(name=REFUSED, message=str(error), data=error)
    except Interrupted:
        return Cancelled(message=INTERRUPTED)
    except (StorageError, ClusterError) as error:
        return Failed(message=f"the sweep could not go on, what is finished is safe: {error}", data=error)
    except PrefectException:
        raise
    except Exception as error:  # a bug: Prefect logs and shows the message
        raise fit_to_log(error) from None
    if swept is None:
        return Cancelled(message=f"another sweep into {redact(request.out)} is going on; nothing was run")
    if not (swept.entries or swept.unchanged):  # stores cannot distinguish an empty prefix from a misspelled one
        message = f"no manifest in {redact(request.manifest)}; if there should be one, correct --inbox"
        get_run_logger().warning(message)
        return Completed(message=message, data=swept)
    if not swept.broken:
        return Completed(message=swept.message, data=swept)
    if all(entry.result in (Result.REFUSED, Result.FAILED) for entry in swept.entries.values()):
        return Failed(message=swept.message, data=swept)
    return Completed(name=WITH_FAILURES, message=swept.message, data=swept)


def parameters(request: Request) -> dict[str, Any]:
    """Return the parameters of a sweep's flow run; the request's manifest is the inbox."""
    return {
        "inbox": request.manifest,
        "out": request.out,
        "recipe": request.recipe,
        "size": request.size,
        "steps": request.steps,
        "precision": request.precision,
        "plateau": request.plateau,
        "backbone": request.backbone,
        "weights_file": request.weights,
        "strict": request.strict,
        "max_failures": request.max_failures,
        "upscale": request.upscale,
        "pair_timeout": request.pair_timeout,
        "runner": request.runner,
    }


def start(request: Request) -> State[Any]:
    """Run the flow for a sweep and return its final state."""
    return nightly(**parameters(request), return_state=True)


def sweep(request: Request, settings: Settings) -> Swept | None:
    """Run a sweep inside a flow run; return None if another sweep is in progress.

    Raises:
        InputError: An option is wrong; nothing ran.
        Interrupted: The sweep received a stop signal.
        StorageError: The inbox, the ledger or the whole output cannot be read or written.
        ClusterError: The workers can no longer be reached.
    """
    options = inbox.options(request, settings)
    exclusive = _patiently(lambda: storage.honours_create(request.out), settings)
    run = Run(
        id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        out=storage.join(request.out, ledger.FOLDER),
        backbone=request.backbone,
        weights=None,
        weights_sha256="",
        history_every=1,
        settings=settings,
        exclusive=exclusive,
    )
    if not exclusive:
        get_run_logger().warning("%s: its store ignores conditional creates, so start no second sweep", redact(request.out))
    with claims.taken([CLAIM], run) as mine:
        if not mine:
            return None
        found = _patiently(lambda: inbox.look(request, options, settings), settings)
        for warning in (manifest.warning for manifest in found if manifest.warning):
            get_run_logger().warning(warning)
        to_run = [manifest for manifest in found if not manifest.is_settled]
        get_run_logger().info("%d manifests in %s, %d to run", len(found), redact(request.manifest), len(to_run))
        swept = Swept({}, len(found) - len(to_run))
        try:
            for manifest in to_run:
                swept.entries[manifest.file] = _run(manifest, request, options, settings)
        finally:
            _show(swept)
    return swept


def _run(found: Found, request: Request, options: dict[str, Any], settings: Settings) -> Entry:
    """Run one manifest and write its ledger entry, whether or not the run succeeds.

    Raises:
        Interrupted: The sweep received a stop signal.
        StorageError: The failure would affect every other manifest too.
        ClusterError: The workers can no longer be reached.
    """
    began = datetime.now(UTC)
    asked = replace(request, manifest=found.uri, out=found.out)

    def enter(result: Result, message: str, state: State[Any] | None = None, report: Report | None = None) -> Entry:
        """Write the ledger entry and return it; a failure that affects only this manifest is logged."""
        sha256 = report.manifest_sha256 if report else found.sha256
        settled = result != Result.INTERRUPTED and _patiently(
            lambda: inbox.is_settled(found, report, request.strict, settings), settings
        )
        entry = Entry(
            manifest=redact(found.uri),
            sha256=sha256,
            version=ledger.version(redact(found.uri), sha256, options),
            settled=settled,
            result=result,
            counts=report.counts if report else {},
            message=message,
            run_id=report.run_id if report else "",
            flow_run_id=str(state.state_details.flow_run_id or "") if state else "",
            began=began.isoformat(),
            ended=datetime.now(UTC).isoformat(),
        )
        try:
            _patiently(lambda: ledger.write(request.out, found.file, entry), settings)
        except StorageError as error:
            if not is_pairs_own(error):
                raise
            get_run_logger().warning("%s: not in the ledger, and so run again by the next sweep: %s", redact(found.uri), error)
        return entry

    if watch().stop.is_set():
        raise Interrupted("interrupted before the next manifest")
    if found.problem:
        get_run_logger().warning("%s: %s", redact(found.uri), found.problem)
        stylize.announce(asked, Result.REFUSED, found.problem)
        return enter(Result.REFUSED, found.problem)
    token = current.set(watch().part())
    try:
        state = stylize.start(asked)
    except (KeyboardInterrupt, TerminationSignal):
        with contextlib.suppress(NstError):
            enter(Result.INTERRUPTED, INTERRUPTED)
        raise
    finally:
        current.reset(token)
    ended = state.result(raise_on_failure=False)
    result, message = stylize.result_of(state), state.message or ""
    report = ended if isinstance(ended, Report) else None
    if isinstance(ended, (StorageError, ClusterError)) and not is_pairs_own(ended):
        with contextlib.suppress(NstError):
            enter(result, message, state)
        raise ended
    entry = enter(result, message, state, report)
    if result is Result.INTERRUPTED:
        raise Interrupted(INTERRUPTED)
    return entry


def _patiently(function: Callable[[], T], settings: Settings) -> T:
    return storage.patiently(function, settings, watch().stop, get_run_logger().warning)


def _show(swept: Swept) -> None:
    """Publish a table of the sweep in the Prefect UI, with links to the flow runs."""
    lines = [swept.message, "", "| manifest | result | what came of it | flow run |", "|---|---|---|---|"]
    for file, entry in list(swept.entries.items())[:SHOWN]:
        url = url_for("flow-run", obj_id=entry.flow_run_id) if entry.flow_run_id else None
        told = redact(entry.message.partition("\n")[0][:300])
        lines.append(f"| {plain(redact(file))} | {entry.result} | {plain(told)} | {f'[open]({url})' if url else ''} |")
    if len(swept.entries) > SHOWN:
        lines.append(f"\nand {len(swept.entries) - SHOWN} more: the ledger has them all")
    taken(create_markdown_artifact, markdown="\n".join(lines), key="nightly", description="The manifests of a sweep")
