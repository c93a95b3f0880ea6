"""The command `nst`: parse options, call one function, print the result.

Prefect and TensorFlow are imported only by the commands that use them, so that all others start at once. Results go to
standard output; progress, warnings and errors go to standard error.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from flows import prefect_server
from nst_tasks import __version__
from nst_tasks.core.method import Precision as PrecisionName
from nst_tasks.engine.runtime import import_tensorflow
from nst_tasks.errors import InputError, NstError, limit_lines, redact
from nst_tasks.inputs import presets, recipe_file, settings, weights
from nst_tasks.inputs.options import RunnerName

app = typer.Typer(
    name="nst",
    help="Batch neural style transfer: a CSV manifest of content x style pairs goes in, pictures come out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


MAX_LINES = 100
"""Maximum number of warnings, of failures and of flags of a run printed to the terminal."""

Inbox = Annotated[str | None, typer.Option(help="Folder or prefix whose manifests are run; NST_INBOX by default.")]
SweepOut = Annotated[str | None, typer.Option(help="Folder below which each manifest has its output; NST_OUT by default.")]
Recipe = Annotated[
    str, typer.Option(help="Recipe of the rows that name none: one that `nst recipes` lists, or a TOML file, path or URI.")
]
Size = Annotated[int | None, typer.Option(help="Longest side of the results, in pixels; the recipe's by default.")]
Steps = Annotated[int | None, typer.Option(help="Optimization steps at full size; the recipe's by default.")]
Precision = Annotated[
    PrecisionName | None,
    typer.Option(help="Of the network: mixed has bfloat16, auto is mixed where that is fast; the recipe's by default."),
]
Plateau = Annotated[
    float | None,
    typer.Option(
        help="A level ends once its mean loss falls by no more than this share over 20 steps; 0 never; the recipe's by default."
    ),
]
Backbone = Annotated[str, typer.Option(help=f"Network whose features are used: {', '.join(weights.BACKBONES)}.")]
WeightsFile = Annotated[str | None, typer.Option("--weights", help="Keras weights file for vgg19 or vgg16, path or URI.")]
Strict = Annotated[bool, typer.Option("--strict", help="Run nothing of a manifest of which any row is rejected.")]
MaxFailures = Annotated[str | None, typer.Option(help="A manifest's run ends Failed above this many failed rows: N or P%.")]
Upscale = Annotated[bool, typer.Option("--upscale", help="Enlarge pictures that are smaller than the size.")]
PairTimeout = Annotated[float | None, typer.Option(help="Seconds of compute after which a pair fails; never by default.")]
RunnerOption = Annotated[
    RunnerName, typer.Option(help="Where batches run: threads of this process, or a cluster's workers; one batch a device.")
]
Cron = Annotated[
    str | None, typer.Option(help="When nightly runs: minute, hour, day of month, month, day of week; NST_CRON by default.")
]
Timezone = Annotated[str | None, typer.Option(help="Time zone of that, such as Europe/Berlin; NST_TIMEZONE by default.")]
"""Options shared by several commands."""


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"nst {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Batch neural style transfer."""


@app.command()
def run(
    manifest: Annotated[str, typer.Argument(help="CSV manifest, a local path or a URI such as s3://bucket/pairs.csv.")],
    out: Annotated[str, typer.Option(help="Folder for everything that comes out, a local path or a URI.")],
    recipe: Recipe = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision = None,
    plateau: Plateau = None,
    backbone: Backbone = weights.DEFAULT_BACKBONE,
    weights_file: WeightsFile = None,
    runner: RunnerOption = "threads",
    strict: Annotated[bool, typer.Option("--strict", help="Run nothing if any row is rejected.")] = False,
    max_failures: Annotated[str | None, typer.Option(help="The run ends Failed above this many failed rows: N or P%.")] = None,
    upscale: Upscale = False,
    history_every: Annotated[int, typer.Option(help="Keep every N-th step in the loss history; first and last stay.")] = 1,
    snapshots: Annotated[
        int | None, typer.Option(help="Write the unfinished picture beside the image every N steps; never by default.")
    ] = None,
    checkpoint_every: Annotated[
        str,
        typer.Option(help="Write a checkpoint every so many seconds of compute such as 30s, or steps such as 50; 0: never."),
    ] = "30s",
    pair_timeout: PairTimeout = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would be done, do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Stylize every pair of a manifest."""
    from nst_tasks.inputs.options import Request
    from nst_tasks.inputs.readers import resolve_recipe_name
    from nst_tasks.planning.dry_run import summarize_dry_run
    from nst_tasks.planning.prepare import prepare
    from nst_tasks.storage.uri import make_absolute

    request = Request(
        make_absolute(manifest), make_absolute(out), resolve_recipe_name(recipe), size, steps, backbone,
        make_absolute(weights_file) if weights_file else None, strict, max_failures, upscale, history_every, snapshots,
        checkpoint_every, pair_timeout, runner, precision, plateau,
    )  # fmt: skip
    with _exit_on_interrupt():
        try:
            configured = settings.read_environment()
            if dry_run:
                _print_dry_run(summarize_dry_run(request, prepare(request, configured), configured), as_json)
        except NstError as error:
            _exit_with_error(error)
        _run_and_exit(request, configured, as_json)


@app.command()
def nightly(
    inbox: Inbox = None,
    out: SweepOut = None,
    recipe: Recipe = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision = None,
    plateau: Plateau = None,
    backbone: Backbone = weights.DEFAULT_BACKBONE,
    weights_file: WeightsFile = None,
    strict: Strict = False,
    max_failures: MaxFailures = None,
    upscale: Upscale = False,
    pair_timeout: PairTimeout = None,
    runner: RunnerOption = "threads",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run every manifest of an inbox that is new or has changed, once, now."""
    from flows.console import run_sweep
    from nst_tasks.planning.inbox import collect_result_options

    with _exit_on_interrupt():
        try:
            configured = load_settings(inbox=inbox, out=out)
            request = build_sweep_request(
                configured, recipe, size, steps, backbone, weights_file, strict, max_failures, upscale, pair_timeout, runner,
                precision, plateau,
            )  # fmt: skip
            collect_result_options(request, configured)
            configure_prefect()
            with prefect_server.start_in_background(), gc_frozen():
                import_tensorflow()

            final, sweep_result = run_sweep(request)
        except NstError as error:
            _exit_with_error(error)
    entries = sweep_result.entries if sweep_result else {}
    if as_json:
        result = {"state": final.name, "message": final.message, "unchanged": sweep_result.unchanged if sweep_result else 0}
        typer.echo(json.dumps({**result, "manifests": {k: dataclasses.asdict(e) for k, e in entries.items()}}, indent=1))
    else:
        for file, entry in entries.items():
            typer.echo(f"{redact(file)}: {entry.result}, {entry.message}")
        typer.echo(f"{final.name}: {final.message}", err=sweep_result is None)
    raise typer.Exit(final.exit_code)


@app.command()
def serve(
    inbox: Inbox = None,
    out: SweepOut = None,
    cron: Cron = None,
    timezone: Timezone = None,
    recipe: Recipe = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision = None,
    plateau: Plateau = None,
    backbone: Backbone = weights.DEFAULT_BACKBONE,
    weights_file: WeightsFile = None,
    strict: Strict = False,
    max_failures: MaxFailures = None,
    upscale: Upscale = False,
    pair_timeout: PairTimeout = None,
    runner: RunnerOption = "threads",
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; each would have a GPU's whole memory for itself.")] = 1,
) -> None:
    """Serve two deployments until stopped: nightly, by schedule, and stylize-manifest, on demand."""
    with _exit_on_interrupt():
        try:
            configured = load_settings(inbox=inbox, out=out, cron=cron, timezone=timezone)
            request = build_sweep_request(
                configured, recipe, size, steps, backbone, weights_file, strict, max_failures, upscale, pair_timeout, runner,
                precision, plateau,
            )  # fmt: skip
            configure_prefect(console=False)
            import_tensorflow()
            from flows import deployments

            deployment_runner = deployments.register(request, configured, limit)
            typer.echo(f"serving {' and '.join(deployments.DEPLOYMENT_NAMES)}; press Ctrl-C to stop", err=True)
            deployments.serve(deployment_runner)
        except NstError as error:
            _exit_with_error(error)


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="Work pool whose workers start the runs.")],
    image: Annotated[str | None, typer.Option(help="Container image in which they start them, if they do.")] = None,
    inbox: Inbox = None,
    out: SweepOut = None,
    cron: Cron = None,
    timezone: Timezone = None,
    recipe: Recipe = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision = None,
    plateau: Plateau = None,
    backbone: Backbone = weights.DEFAULT_BACKBONE,
    weights_file: WeightsFile = None,
    strict: Strict = False,
    max_failures: MaxFailures = None,
    upscale: Upscale = False,
    pair_timeout: PairTimeout = None,
    runner: RunnerOption = "threads",
) -> None:
    """Register nightly and stylize-manifest on a work pool."""
    try:
        configured = load_settings(inbox=inbox, out=out, cron=cron, timezone=timezone)
        request = build_sweep_request(
            configured, recipe, size, steps, backbone, weights_file, strict, max_failures, upscale, pair_timeout, runner,
            precision, plateau,
        )  # fmt: skip
        configure_prefect()
        import_tensorflow()
        from flows import deployments

        deployments.deploy(request, configured, pool, image)
    except NstError as error:
        _exit_with_error(error)
    for name in deployments.DEPLOYMENT_NAMES:
        typer.echo(f"{name}/{name} on {pool}")


@app.command()
def plan(
    manifest: Annotated[str, typer.Argument(help="CSV manifest, a local path or a URI.")],
    out: Annotated[str, typer.Option(help="Folder that the run would be given; it is read and never written.")],
    recipe: Recipe = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision = None,
    plateau: Plateau = None,
    backbone: Backbone = weights.DEFAULT_BACKBONE,
    weights_file: WeightsFile = None,
    upscale: Upscale = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Estimate the time by a few steps on this device, or do not.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a run would do, how much memory it needs and about how long it takes; write nothing to the output."""
    from nst_tasks.engine.calibration import calibrate as measure
    from nst_tasks.inputs.options import Request
    from nst_tasks.inputs.readers import resolve_recipe_name
    from nst_tasks.planning.dry_run import inspect_inputs
    from nst_tasks.planning.plan import build_plan
    from nst_tasks.planning.prepare import prepare
    from nst_tasks.storage.uri import make_absolute

    request = Request(
        make_absolute(manifest), make_absolute(out), resolve_recipe_name(recipe), size, steps, backbone,
        make_absolute(weights_file) if weights_file else None, upscale=upscale, precision=precision,
        plateau=plateau,
    )  # fmt: skip
    with _exit_on_interrupt():
        try:
            configured = settings.read_environment()
            loaded = prepare(request, configured, will_write=False)
            findings = inspect_inputs(request, loaded, configured)
            calibration = None
            if calibrate and findings.rows.to_do:  # with nothing to do, TensorFlow is not imported
                typer.echo("nst: measuring a few steps, for about a minute", err=True)
                import_tensorflow()

                calibration = measure(findings.rows.to_do, request, loaded.weights_sha256, configured)
        except NstError as error:
            _exit_with_error(error)
        planned = build_plan(loaded.manifest, findings, configured, calibration)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(planned), indent=1))
    else:
        for line in planned.format_lines():
            typer.echo(line)
    raise typer.Exit(1 if planned.problems else 0)


@app.command()
def validate(
    manifest: Annotated[str, typer.Argument(help="CSV manifest, a local path or a URI.")],
    probe: Annotated[bool, typer.Option("--probe", help="Also open every picture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a manifest: every problem with its row, column, value and remedy. Runs nothing, writes nothing."""
    from nst_tasks.inputs.readers import load_recipes, read_manifest
    from nst_tasks.planning.inspection import probe_images
    from nst_tasks.storage.uri import make_absolute

    try:
        configured = settings.read_environment()
        place = make_absolute(manifest)
        parsed, _ = load_recipes(place, *read_manifest(place, configured.access), configured.access)
        problems = [str(problem) for problem in parsed.problems]
        if probe:
            problems += probe_images(parsed.pairs, configured)
    except NstError as error:
        _exit_with_error(error)
    if as_json:
        result = {
            "rows": parsed.rows,
            "good": len(parsed.pairs),
            "rejected": len(parsed.rejected),
            "problems": problems,
        }
        typer.echo(json.dumps(result, indent=1))
    else:
        for problem in problems:
            typer.echo(problem)
        typer.echo(f"{parsed.rows} rows: {len(parsed.pairs)} good, {len(parsed.rejected)} rejected")
    raise typer.Exit(1 if problems else 0)


@app.command()
def grid(
    content: Annotated[list[str], typer.Option(help="Glob pattern of content pictures; may be given several times.")],
    style: Annotated[list[str], typer.Option(help="Glob pattern of style pictures; may be given several times.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe for every row, a name or a TOML file.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Where to write the manifest; - is standard output.")] = "-",
) -> None:
    """Write the manifest of every content with every style."""
    from nst_tasks.inputs.manifest_export import build_grid
    from nst_tasks.inputs.readers import find_recipe, resolve_recipe_name
    from nst_tasks.storage import access, files
    from nst_tasks.storage.uri import make_absolute

    try:
        allowed = settings.read_environment().access
        if recipe is not None and recipe_file.is_recipe_file(recipe):
            recipe = resolve_recipe_name(recipe)
            find_recipe(recipe, allowed)
        for place in (*content, *style, *([output] if output != "-" else [])):
            access.check_access(make_absolute(place), allowed)
        images = {
            name: [uri for pattern in patterns for uri in files.expand_glob(make_absolute(pattern))]
            for name, patterns in (("content", content), ("style", style))
        }
        data = build_grid(images["content"], images["style"], recipe)
        if output != "-":
            files.write(make_absolute(output), data)
    except NstError as error:
        _exit_with_error(error)
    if output == "-":
        sys.stdout.buffer.write(data)
    else:
        typer.echo(f"{len(set(images['content'])) * len(set(images['style']))} pairs written to {output}", err=True)


@app.command(name="recipes")
def list_recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe or its TOML file, to see its source and every constant.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the recipes, or show one as the TOML file that it could be given as."""
    if name is None:
        width = max(map(len, presets.PRESETS))
        lines = [f"{recipe.name:{width}}  {recipe.summary}" for recipe in presets.PRESETS.values()]
        plain = [recipe.as_plain() for recipe in presets.PRESETS.values()]
        typer.echo(json.dumps(plain, indent=1) if as_json else "\n".join(lines))
        return
    from nst_tasks.inputs.readers import find_recipe, resolve_recipe_name

    try:
        recipe = find_recipe(resolve_recipe_name(name), settings.read_environment().access)
    except InputError as error:
        _exit_with_error(error)
    typer.echo(json.dumps(recipe.as_plain(), indent=1) if as_json else recipe_file.to_toml(recipe), nl=as_json)


@app.command()
def report(
    out: Annotated[str, typer.Argument(help="Folder that was given to --out.")],
) -> None:
    """Write OUT/report.html, one page with every finished pair of all runs."""
    from nst_tasks.outputs.report import rebuild_report
    from nst_tasks.storage import access
    from nst_tasks.storage.uri import make_absolute

    try:
        configured, place = settings.read_environment(), make_absolute(out)
        access.check_output(place, configured.access)
        uri, pairs, warnings = rebuild_report(place, configured)
    except NstError as error:
        _exit_with_error(error)
    for warning in warnings:
        typer.echo(warning, err=True)
    typer.echo(f"{uri}: {pairs} pairs")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Local folder for sample pictures and results.")] = "demo-output",
) -> None:
    """Stylize sample pictures by the bundled manifest, with real features and no network."""
    from flows.demo import write_samples
    from nst_tasks.inputs.options import Request
    from nst_tasks.storage import access
    from nst_tasks.storage.uri import make_absolute

    with _exit_on_interrupt():
        try:
            configured = settings.read_environment()
            access.check_output(make_absolute(out), configured.access)
            manifest = write_samples(make_absolute(out))
        except NstError as error:
            _exit_with_error(error)
        _run_and_exit(Request(manifest, make_absolute(out)), configured, as_json=False)


@contextmanager
def _exit_on_interrupt() -> Iterator[None]:
    """Handle SIGTERM like SIGINT: end the command with exit code 130.

    Covers the time before and after a run, which installs signal handlers of its own.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("nst: interrupted", err=True)
        raise typer.Exit(130) from None


def load_settings(**overrides: str | None) -> settings.Settings:
    """Read the settings from the environment; options that are given take precedence.

    Raises:
        SettingsError: A setting is out of range.
    """
    options = {settings.ENVIRONMENT_PREFIX + name.upper(): text for name, text in overrides.items() if text is not None}
    return settings.read_environment({**os.environ, **options})


def build_sweep_request(
    configured: settings.Settings,
    recipe: str,
    size: int | None,
    steps: int | None,
    backbone: str,
    weights_file: str | None,
    strict: bool,
    max_failures: str | None,
    upscale: bool,
    pair_timeout: float | None,
    runner: RunnerName,
    precision: PrecisionName | None,
    plateau: float | None,
) -> Any:
    """Build the request of a sweep, whose `manifest` is the inbox.

    Raises:
        InputError: The inbox or the output is missing.
    """
    from nst_tasks.inputs.options import Request
    from nst_tasks.inputs.readers import resolve_recipe_name
    from nst_tasks.storage.uri import make_absolute

    missing = [name for name in ("inbox", "out") if not getattr(configured, name)]
    if missing:
        raise InputError("\n".join(f"--{name}: is missing; give it, or set NST_{name.upper()}" for name in missing))
    return Request(
        manifest=make_absolute(configured.inbox),
        out=make_absolute(configured.out),
        recipe=resolve_recipe_name(recipe),
        size=size,
        steps=steps,
        backbone=backbone,
        weights=make_absolute(weights_file) if weights_file else None,
        strict=strict,
        max_failures=max_failures,
        upscale=upscale,
        pair_timeout=pair_timeout,
        runner=runner,
        precision=precision,
        plateau=plateau,
    )


def configure_prefect(console: bool = True) -> None:
    """Limit Prefect to what a run needs, and its console output to what a person needs; the API still gets every log line.

    Variables that the environment sets take precedence.

    Args:
        console: Restrict console output to errors too; `nst serve` does not.
    """
    if console:  # log lines would break the progress bar
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
    for name, value in {**prefect_server.SERVER_ENVIRONMENT, "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Exclude objects created in this block, mostly by imports, from garbage collection.

    Each full collection would otherwise traverse half a million objects.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run_and_exit(request: Any, configured: settings.Settings, as_json: bool) -> NoReturn:
    """Run the flow with a progress bar, print its result and end with its exit code."""
    from flows.console import run_flow
    from nst_tasks.planning.prepare import prepare

    configure_prefect()
    try:
        with prefect_server.start_in_background():
            prepare(request, configured)  # report bad input before waiting for TensorFlow and the server
            with gc_frozen():
                import_tensorflow()

        final = run_flow(request)
    except NstError as error:
        _exit_with_error(error)
    if final.report is None:
        typer.echo(final.message, err=True)
    elif as_json:
        typer.echo(json.dumps({"state": final.name, **dataclasses.asdict(final.report)}, indent=1))
    else:
        for lines in (final.report.warnings, final.report.failures, final.report.flagged):
            for line in limit_lines(MAX_LINES, lines, "run.json has them all"):
                typer.echo(line, err=True)
        typer.echo(f"{final.name}: {final.message} in {final.report.seconds:.0f} s")
        typer.echo(f"images   {final.report.out}/images")
        typer.echo(f"history  {final.report.out}/history")
        for kind, uri in sorted(final.report.files.items()):
            typer.echo(f"{kind:8} {uri}")
    raise typer.Exit(final.exit_code)


def _print_dry_run(survey: Any, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(survey), indent=1))
    else:
        for line in survey.format_lines():
            typer.echo(line)
    raise typer.Exit(1 if survey.problems else 0)


def _exit_with_error(error: NstError) -> NoReturn:
    """Print each line of the error and end with exit code 2."""
    for line in str(error).splitlines():
        typer.echo(f"nst: {line}", err=True)
    raise typer.Exit(2)
