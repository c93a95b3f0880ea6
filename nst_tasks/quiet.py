"""TensorFlow without its greeting, and without Keras."""

from __future__ import annotations

import os
import sys

from nst_tasks import __version__, allocation


def import_tensorflow() -> str:
    """Import TensorFlow with standard error closed to it: it announces its build there before it can be told not to.

    Keras, which it would import for `tf.keras`, is held back for as long: a second and 100 MB of each process for nothing that
    nst uses. Whoever imports it later has it.

    Returns nst's version: what a worker of a cluster is asked for.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    allocation.keep_freed()
    sys.stderr.flush()
    kept = os.dup(2)
    held_back = "keras" not in sys.modules
    if held_back:
        sys.modules["keras"] = None  # type: ignore[assignment]  # so Python says that an import is to fail
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, and says so where there are none
    finally:
        if held_back:
            del sys.modules["keras"]
        os.dup2(kept, 2)
        os.close(kept)
    return __version__
