"""Import TensorFlow without its startup messages and without Keras."""

from __future__ import annotations

import os
import sys

from nst_tasks import __version__, allocation


def import_tensorflow() -> str:
    """Import TensorFlow with standard error closed, and return nst's version, which a cluster asks of its workers.

    TensorFlow prints its build to standard error before its log level takes effect. The import of Keras for `tf.keras` is
    blocked meanwhile, as it costs a second and 100 MB per process and nst does not use it; it can be imported afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    allocation.keep_freed()
    sys.stderr.flush()
    kept = os.dup(2)
    held_back = "keras" not in sys.modules
    if held_back:
        sys.modules["keras"] = None  # type: ignore[assignment]  # None makes its import fail
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # searches for GPUs, and prints if there are none
    finally:
        if held_back:
            del sys.modules["keras"]
        os.dup2(kept, 2)
        os.close(kept)
    return __version__
