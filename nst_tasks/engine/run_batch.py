"""Run one batch: claim its pairs, load their images, lease a device, optimize and publish.

Plain functions without Prefect. A failure of one pair becomes its outcome; an error that a retry may fix is raised.
"""

from __future__ import annotations

from dataclasses import replace

from nst_tasks.engine import checkpoint_store, devices
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.out_of_memory import optimize_with_halving
from nst_tasks.engine.preprocessing import load_job
from nst_tasks.engine.publish import make_failed_outcome, publish, publish_failure, record_failure
from nst_tasks.errors import DeadlineError, NstError, PairError, QuarantinedError, is_pair_failure
from nst_tasks.inputs.jobs import Batch, Job
from nst_tasks.inputs.run import Run
from nst_tasks.outputs import claims
from nst_tasks.outputs.layout import marker_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.outcome_store import find_current_outcome
from nst_tasks.progress import current_progress


def stylize(batch: Batch, run: Run) -> list[Outcome]:
    """Stylize a batch and write its results; return, in order, the outcome of each pair that no other run has claimed.

    Raises:
        StorageUnavailable: The store failed temporarily; the whole batch can be retried without loss.
        StorageUnusable: The store refuses every access of the run.
        Interrupted: The run was stopped; checkpoints are written.
    """
    progress = current_progress()
    outcomes: dict[str, Outcome] = {}
    loaded_jobs = []
    with claims.hold((job.key for job in batch.jobs), run) as claimed:
        claimed_jobs = [job for job in batch.jobs if job.key in claimed]
        for job in claimed_jobs:
            if finished := _find_finished(job, run):
                outcomes[job.id] = finished
            elif claimed[job.key].strikes >= claims.MAX_STRIKES:
                outcomes[job.id] = publish_failure(job, _make_quarantined_error(job), run)
            else:
                try:
                    loaded_jobs.append(load_job(job, run))
                except NstError as error:
                    if not is_pair_failure(error):
                        raise
                    outcomes[job.id] = publish_failure(job, error, run)
        if loaded_jobs:
            with devices.acquire(progress) as device:
                results = optimize_with_halving(loaded_jobs, run, device, progress)
            for loaded, result in zip(loaded_jobs, results, strict=True):
                outcomes[loaded.job.id] = publish(loaded, result, run)
            checkpoint_store.delete_checkpoints(
                run.out,
                {
                    loaded.job.key
                    for loaded, result in zip(loaded_jobs, results, strict=True)
                    if _has_leftover_checkpoints(result)
                },
            )
    progress.mark_done(outcomes)
    return [outcomes[job.id] for job in claimed_jobs]


def _find_finished(job: Job, run: Run) -> Outcome | None:
    """Return the outcome of a job that an earlier attempt of this run, or another run, has finished; else None.

    Another run's outcome gets the status SKIPPED and this run's row.
    """
    done = find_current_outcome(job, run.out, run.id)
    return done if done is None or done.run_id == run.id else replace(done, status=Status.SKIPPED, row=job.row)


def _has_leftover_checkpoints(result: TransferResult | PairError) -> bool:
    """Return whether the output may hold checkpoints of the pair that no run will resume from."""
    return result.has_checkpoints if isinstance(result, TransferResult) else not isinstance(result, DeadlineError)


def _make_quarantined_error(job: Job) -> QuarantinedError:
    return QuarantinedError(
        f"its process crashed in native code {claims.MAX_STRIKES} times while it was made, so it is not tried again; "
        f"take another "
        f"size or recipe, or delete {marker_path(job.id)} from the output to try once more"
    )


def fail_batch(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """Record and return a failed outcome for each pair of a batch that failed as a whole; keep finished outcomes.

    Raises:
        StorageUnavailable: The store failed temporarily; no marker is overwritten that could not be read.
        StorageUnusable: The store rejects all writes.
    """
    return [
        _find_finished(job, run) or record_failure(make_failed_outcome(job.id, job.row, error, run.id), run)
        for job in batch.jobs
    ]
