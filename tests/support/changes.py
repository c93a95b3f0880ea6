"""Jobs that differ from others in named values, wherever these are kept."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nst_tasks.inputs.jobs import Job

JOB_FIELDS = {field.name for field in fields(Job)}


def change_job(job: Job, **values: Any) -> Job:
    """Replace these fields of a job or, where it lacks them, of its row."""
    row_values = {name: value for name, value in values.items() if name not in JOB_FIELDS}
    own_values = {name: value for name, value in values.items() if name in JOB_FIELDS}
    return replace(job, pair=replace(job.pair, **row_values), **own_values)
