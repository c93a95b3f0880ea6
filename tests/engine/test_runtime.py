"""TensorFlow as nst imports it: in a process of its own, since here it is imported already."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from nst_tasks.engine import runtime
runtime.import_tensorflow()
import tensorflow as tf
assert tf.reduce_sum(tf.ones((2, 3))).numpy() == 6.0
assert "keras" not in sys.modules
print(tf.keras.layers.Dense.__name__)
import keras
print(keras.layers.Dense.__name__)
"""


def test_tensorflow_is_imported_quietly_without_keras() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "Dense\nDense\n"
    assert done.stderr == ""
