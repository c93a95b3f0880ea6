"""Final states of flow runs: which state a result or an exception becomes, and what it means to the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from nst_tasks.errors import ClusterError, InputError, Interrupted, StorageError, is_pair_failure, sanitize_for_log
from nst_tasks.inputs.options import parse_failure_limit
from nst_tasks.outputs.ledger import RunResult
from nst_tasks.outputs.report import Report
from nst_tasks.progress import current_progress

R = TypeVar("R")

REFUSED = "Refused"
COMPLETED_WITH_FAILURES = "Completed with failures"
"""Names of final states for which Prefect has no type."""

INTERRUPTED_MESSAGE = "interrupted; what is finished is safe: run the same command again"


def run_to_final_state(
    work: Callable[[], State[R]], unit: str, describe_refusal: Callable[[InputError], str] = str
) -> State[R]:
    """Call `work` and return its state, or the final state for the exception that it raises.

    Args:
        work: The body of a flow; it returns the state of a result.
        unit: What it runs, in the message of a failure: `run` or `sweep`.
        describe_refusal: Returns the message for an input that is refused.

    Raises:
        TerminationSignal: SIGTERM, as Prefect delivers it; threads then stop after their current chunk of steps.
        PrefectException: Prefect's own control flow.
        NstError: A bug, with secrets removed: Prefect logs and shows the message.
    """
    progress = current_progress()
    try:
        return work()
    except TerminationSignal:
        progress.stop.set()
        raise
    except InputError as error:
        return Failed(name=REFUSED, message=describe_refusal(error), data=error)
    except Interrupted:
        return Cancelled(message=INTERRUPTED_MESSAGE)
    except (StorageError, ClusterError) as error:
        if not is_pair_failure(error):
            progress.stop.set()  # all pairs are affected: stop those in flight, and a sweep's other manifests
        return Failed(message=f"the {unit} could not go on, what is finished is safe: {error}", data=error)
    except PrefectException:
        raise
    except Exception as error:
        raise sanitize_for_log(error) from None


def report_state(report: Report, max_failures: str | None) -> State[Report]:
    """Return the final state of a run with this report: Failed above the limit of failed rows."""
    message = report.message
    if len(report.failures) > parse_failure_limit(max_failures, report.rows):
        limit = f"above --max-failures {max_failures}" if max_failures else "none succeeded"
        return Failed(message=f"{message} ({limit})", data=report)
    if report.failures:
        return Completed(name=COMPLETED_WITH_FAILURES, message=message, data=report)
    return Completed(message=message, data=report)


def get_run_result(state: State[Any]) -> RunResult:
    """Return the ledger's result for the final state of a run."""
    if state.is_completed():
        return RunResult.FAILURES if state.name == COMPLETED_WITH_FAILURES else RunResult.GOOD
    if state.is_cancelled():
        return RunResult.INTERRUPTED
    return RunResult.REFUSED if state.name == REFUSED else RunResult.FAILED
