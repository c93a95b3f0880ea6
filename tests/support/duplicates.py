"""Two rows of one pair at the same time, for each kind of store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nst_tasks.engine import devices, run_batch
from nst_tasks.images import codec
from nst_tasks.inputs.jobs import Batch
from nst_tasks.outputs import claims
from nst_tasks.outputs.layout import CHECKPOINTS_FOLDER, CLAIMS_FOLDER
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.changes import change_job
from tests.support.jobs import run_into, two_jobs
from tests.support.waiting import TIMEOUT, wait_until


def check_two_rows_of_one_pair(folder: Path, out: str) -> None:
    """Do two rows of one pair at the same time: both succeed with the same picture, and nothing is left behind."""
    first = two_jobs(folder)[0]
    run = run_into(out, exclusive=True, checkpoint_steps=1)

    def made(id: str) -> Outcome:
        while not (outcomes := run_batch.stylize(Batch((change_job(first, id=id),)), run)):
            time.sleep(0.1)  # the other one has the claim just now: the flow, too, tries it again
        return outcomes[0]

    with ThreadPoolExecutor(2) as threads:
        with devices.acquire(Progress()):  # which both wait for, each with its claim
            doing = [threads.submit(made, id) for id in "ab"]
            wait_until(lambda: (found := claims.current_claims(out)) and found[first.key].generation >= 1)
        done = [future.result(timeout=TIMEOUT) for future in doing]
    assert [(one.id, one.status, one.error) for one in done] == [(id, Status.SUCCEEDED, "") for id in "ab"]
    one, other = (codec.decode(files.read(join_uri(out, each.image)), 10**6).rgb for each in done)
    np.testing.assert_array_equal(one, other)
    assert done[0].losses == done[1].losses
    assert files.list_files(join_uri(out, CLAIMS_FOLDER)) == files.list_files(join_uri(out, CHECKPOINTS_FOLDER)) == {}
