"""Command-line options: one `--option` for each field of an options model, and those that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel

from nst_tasks.errors import InputError
from nst_tasks.inputs.settings import ENVIRONMENT_PREFIX, Settings, read_environment

Inbox = Annotated[str | None, typer.Option(help="Folder or prefix whose manifests are run; NST_INBOX by default.")]
SweepOut = Annotated[str | None, typer.Option(help="Folder below which each manifest has its output; NST_OUT by default.")]
Cron = Annotated[
    str | None, typer.Option(help="When nightly runs: minute, hour, day of month, month, day of week; NST_CRON by default.")
]
Timezone = Annotated[str | None, typer.Option(help="Time zone of that, such as Europe/Berlin; NST_TIMEZONE by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def options_of(model: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of a model, in place of its parameter `options`.

    Name, type, default and help text of an option are those of the field. The command receives an instance of the model.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == "options":
                parameters += [_make_parameter(name, field) for name, field in model.model_fields.items()]
            else:
                keyword = inspect.Parameter.KEYWORD_ONLY
                parameters.append(parameter.replace(annotation=hints[parameter.name], kind=keyword))

        @functools.wraps(command)
        def call_with_model(**given: Any) -> None:
            options = model(**{name: given.pop(name) for name in model.model_fields})
            command(options=options, **given)

        call_with_model.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by Typer
        call_with_model.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call_with_model

    return decorate


def _make_parameter(name: str, field: Any) -> inspect.Parameter:
    option = typer.Option("--" + name.replace("_", "-"), help=field.description)  # named, so that a flag has no --no- form
    annotation = Annotated[field.annotation, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def load_settings(**overrides: str | None) -> Settings:
    """Read the settings from the environment; options that are given take precedence.

    Raises:
        SettingsError: A setting is out of range.
    """
    options = {ENVIRONMENT_PREFIX + name.upper(): text for name, text in overrides.items() if text is not None}
    return read_environment({**os.environ, **options})


def sweep_places(settings: Settings) -> tuple[str, str]:
    """Return the inbox and the output of a sweep as absolute paths or URIs.

    Raises:
        InputError: One of them is missing.
    """
    from nst_tasks.storage.uri import make_absolute

    missing = [name for name in ("inbox", "out") if not getattr(settings, name)]
    if missing:
        raise InputError("\n".join(f"--{name}: is missing; give it, or set NST_{name.upper()}" for name in missing))
    return make_absolute(settings.inbox), make_absolute(settings.out)
