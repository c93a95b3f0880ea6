"""The command `nst`: parse options, call one function, print the result.

Prefect and TensorFlow are imported only by the commands that use them, so that all others start at once. Results go to
standard output; progress, warnings and errors go to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from flows import prefect_server
from flows.cli_options import AsJson, Cron, Inbox, SweepOut, Timezone, load_settings, options_of, sweep_places
from nst_tasks import __version__
from nst_tasks.engine.runtime import gc_frozen, import_tensorflow
from nst_tasks.errors import InputError, NstError, limit_lines, redact
from nst_tasks.inputs import presets, recipe_file
from nst_tasks.inputs.options import ResultOptions, RunOptions, SweepOptions, resolve_recipe_name
from nst_tasks.inputs.settings import Settings, read_environment
from nst_tasks.storage.uri import make_absolute

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
@options_of(RunOptions)
def run(
    manifest: Annotated[str, typer.Argument(help="CSV manifest, a local path or a URI such as s3://bucket/pairs.csv.")],
    out: Annotated[str, typer.Option(help="Folder for everything that comes out, a local path or a URI.")],
    options: RunOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would be done, do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stylize every pair of a manifest."""
    from nst_tasks.planning.dry_run import summarize_dry_run
    from nst_tasks.planning.prepare import prepare

    manifest, out = make_absolute(manifest), make_absolute(out)
    with _exit_on_interrupt():
        try:
            settings = read_environment()
            if dry_run:
                loaded = prepare(manifest, out, options, settings)
                _print_dry_run(summarize_dry_run(out, options, loaded, settings), as_json)
        except NstError as error:
            _exit_with_error(error)
        _run_and_exit(manifest, out, options, settings, as_json)


@app.command()
@options_of(SweepOptions)
def nightly(
    inbox: Inbox = None,
    out: SweepOut = None,
    *,
    options: SweepOptions,
    as_json: AsJson = False,
) -> None:
    """Run every manifest of an inbox that is new or has changed, once, now."""
    from nst_tasks.planning.inbox import collect_result_options

    with _exit_on_interrupt():
        try:
            settings = load_settings(inbox=inbox, out=out)
            inbox, out = sweep_places(settings)
            collect_result_options(inbox, out, options, settings)
            configure_prefect()
            with prefect_server.start_in_background(), gc_frozen():
                import_tensorflow()
                from flows.console import run_sweep

            final, sweep_result = run_sweep(inbox, out, options)
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
@options_of(SweepOptions)
def serve(
    inbox: Inbox = None,
    out: SweepOut = None,
    cron: Cron = None,
    timezone: Timezone = None,
    *,
    options: SweepOptions,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; each would have a GPU's whole memory for itself.")] = 1,
) -> None:
    """Serve two deployments until stopped: nightly, by schedule, and stylize-manifest, on demand."""
    with _exit_on_interrupt():
        try:
            settings = load_settings(inbox=inbox, out=out, cron=cron, timezone=timezone)
            inbox, out = sweep_places(settings)
            configure_prefect(console=False)
            import_tensorflow()
            from flows import deployments

            runner = deployments.register(inbox, out, options, settings, limit)
            typer.echo(f"serving {' and '.join(deployments.DEPLOYMENT_NAMES)}; press Ctrl-C to stop", err=True)
            deployments.serve(runner)
        except NstError as error:
            _exit_with_error(error)


@app.command()
@options_of(SweepOptions)
def deploy(
    pool: Annotated[str, typer.Option(help="Work pool whose workers start the runs.")],
    image: Annotated[str | None, typer.Option(help="Container image in which they start them, if they do.")] = None,
    inbox: Inbox = None,
    out: SweepOut = None,
    cron: Cron = None,
    timezone: Timezone = None,
    *,
    options: SweepOptions,
) -> None:
    """Register nightly and stylize-manifest on a work pool."""
    try:
        settings = load_settings(inbox=inbox, out=out, cron=cron, timezone=timezone)
        inbox, out = sweep_places(settings)
        configure_prefect()
        import_tensorflow()
        from flows import deployments

        deployments.deploy(inbox, out, options, settings, pool, image)
    except NstError as error:
        _exit_with_error(error)
    for name in deployments.DEPLOYMENT_NAMES:
        typer.echo(f"{name}/{name} on {pool}")


@app.command()
@options_of(ResultOptions)
def plan(
    manifest: Annotated[str, typer.Argument(help="CSV manifest, a local path or a URI.")],
    out: Annotated[str, typer.Option(help="Folder that the run would be given; it is read and never written.")],
    options: ResultOptions,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Estimate the time by a few steps on this device, or do not.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a run would do, how much memory it needs and about how long it takes; write nothing to the output."""
    from nst_tasks.planning.dry_run import inspect_inputs
    from nst_tasks.planning.plan import build_plan
    from nst_tasks.planning.prepare import prepare

    manifest, out = make_absolute(manifest), make_absolute(out)
    with _exit_on_interrupt():
        try:
            settings = read_environment()
            loaded = prepare(manifest, out, SweepOptions(**options.model_dump()), settings, will_write=False)
            findings = inspect_inputs(out, options, loaded, settings)
            calibration = None
            if calibrate and findings.rows.to_do:  # with nothing to do, TensorFlow is not imported
                typer.echo("nst: measuring a few steps, for about a minute", err=True)
                import_tensorflow()
                from nst_tasks.engine.calibration import calibrate as measure

                calibration = measure(findings.rows.to_do, options, loaded.weights_sha256, settings)
        except NstError as error:
            _exit_with_error(error)
        planned = build_plan(loaded.manifest, findings, settings, calibration)
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
    as_json: AsJson = False,
) -> None:
    """Check a manifest: every problem with its row, column, value and remedy. Runs nothing, writes nothing."""
    from nst_tasks.inputs.readers import load_recipes, read_manifest
    from nst_tasks.planning.inspection import probe_images

    try:
        settings = read_environment()
        place = make_absolute(manifest)
        parsed, _ = load_recipes(place, *read_manifest(place, settings.access), settings.access)
        problems = [str(problem) for problem in parsed.problems]
        if probe:
            problems += probe_images(parsed.pairs, settings)
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
    from nst_tasks.inputs.readers import find_recipe
    from nst_tasks.storage import access, files

    try:
        allowed = read_environment().access
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
    from nst_tasks.inputs.readers import find_recipe

    try:
        recipe = find_recipe(resolve_recipe_name(name), read_environment().access)
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

    try:
        settings, place = read_environment(), make_absolute(out)
        access.check_output(place, settings.access)
        uri, pairs, warnings = rebuild_report(place, settings)
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
    from nst_tasks.storage import access

    with _exit_on_interrupt():
        try:
            settings = read_environment()
            access.check_output(make_absolute(out), settings.access)
            manifest = write_samples(make_absolute(out))
        except NstError as error:
            _exit_with_error(error)
        _run_and_exit(manifest, make_absolute(out), RunOptions(), settings, as_json=False)


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


def _run_and_exit(manifest: str, out: str, options: RunOptions, settings: Settings, as_json: bool) -> NoReturn:
    """Run the flow with a progress bar, print its result and end with its exit code."""
    from nst_tasks.outputs.layout import HISTORY_FOLDER, IMAGES_FOLDER
    from nst_tasks.planning.prepare import prepare

    configure_prefect()
    try:
        with prefect_server.start_in_background():
            prepare(manifest, out, options, settings)  # report bad input before waiting for TensorFlow and the server
            with gc_frozen():
                import_tensorflow()
                from flows.console import run_flow

        final = run_flow(manifest, out, options)
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
        for folder in (IMAGES_FOLDER, HISTORY_FOLDER):
            typer.echo(f"{folder:8} {final.report.out}/{folder}")
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
