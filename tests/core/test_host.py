"""Between two steps a GPU's host waits for nothing: tested without a GPU, by the kernels that TensorFlow has for one.

The tests follow what the device computes through the graph of `advance`. Where an operation has no kernel for a GPU, or that
kernel takes an argument from the host's memory, and where a loop or a branch depends on it, it must come to the host first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from nst_tasks.core import transfer
from nst_tasks.core.features import _add_rows
from nst_tasks.core.method import Precision, strip_numbers
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs.presets import PRESETS

SHAPES = ("Shape", "ShapeN", "Size", "Rank")
"""Operations whose results the host knows without a tensor's values."""


@functools.cache
def list_kernels(kind: str) -> list[Any]:
    """List the kernels of an operation that run on a GPU or on its host."""
    return [kernel for kernel in kernels.get_registered_kernels_for_op(kind).kernel if kernel.device_type in ("GPU", "DEFAULT")]


@functools.cache
def list_constrained(kind: str) -> list[str]:
    """List the attributes of an operation, its types, that its kernels depend on."""
    constraints = [constraint for kernel in list_kernels(kind) for constraint in kernel.constraint]
    return sorted({constraint.name for constraint in constraints if constraint.allowed_values.list.type})


@functools.cache
def find_typed_kernel(kind: str, types: tuple[tuple[int, ...], ...]) -> Any:
    """Find the kernel of an operation with these types for its constrained attributes; None if there is none."""
    found = dict(zip(list_constrained(kind), types, strict=True))

    def fits(constraint: Any) -> bool:
        allowed = constraint.allowed_values.list.type
        return not allowed or all(each in allowed for each in found[constraint.name])

    return next((kernel for kernel in list_kernels(kind) if all(map(fits, kernel.constraint))), None)


def find_kernel(op: tf.Operation) -> Any:
    """Find the kernel that an operation would get on a GPU, by its types; None if there is none."""
    values = [op.get_attr(name) for name in list_constrained(op.type)]
    types = [[tf.as_dtype(each).as_datatype_enum for each in (x if isinstance(x, list) else [x])] for x in values]
    return find_typed_kernel(op.type, tuple(map(tuple, types)))


def name_arguments(op: tf.Operation, arguments: Iterable[Any]) -> list[str]:
    """Name the argument that each of an operation's inputs, or outputs, belongs to."""
    names: list[str] = []
    for argument in arguments:
        many = op.get_attr(argument.number_attr) if argument.number_attr else 1
        names += [argument.name] * (len(op.get_attr(argument.type_list_attr)) if argument.type_list_attr else many)
    return names


def find_function(graph: Any, op: tf.Operation, attribute: str) -> Any:
    """Return the graph of a function that an operation calls."""
    name = op.get_attr(attribute).name
    while name not in graph._functions:
        graph = graph.outer_graph
    return graph._functions[name].graph


class DeviceTrace:
    """Follow through a graph what the device computes, if these of its inputs are on the device.

    `waits`: what waits in it for such a value. `outputs`: which of its outputs are such values.
    """

    def __init__(self, graph: Any, inputs: Iterable[bool]) -> None:
        self.graph, self.waits = graph, list[str]()
        self.computed = {x.ref() for x, is_computed in zip(graph.inputs, inputs, strict=True) if is_computed}
        for op in graph.get_operations():
            if op.type not in ("Placeholder", "Const", *SHAPES):
                self.follow(op, [x.ref() in self.computed for x in op.inputs])
        self.outputs = [x.ref() in self.computed for x in graph.outputs]

    def follow(self, op: tf.Operation, computed: list[bool]) -> None:
        attributes = {attribute.name for attribute in op.op_def.attr}
        if "then_branch" in attributes:
            self.waits += [f"{op.type} {op.name}"] if computed[0] else []
            self.add(op.outputs)
        elif "body" in attributes:
            self.loop(op, computed)
        elif "f" in attributes:
            called = DeviceTrace(find_function(self.graph, op, "f"), computed)
            self.waits += called.waits
            self.add(x for x, is_computed in zip(op.outputs, called.outputs, strict=True) if is_computed)
        else:
            self.compute(op, computed)

    def loop(self, op: tf.Operation, computed: list[bool]) -> None:
        body = find_function(self.graph, op, "body")
        while (more := [a or b for a, b in zip(computed, DeviceTrace(body, computed).outputs, strict=True)]) != computed:
            computed = more
        self.waits += [f"a round of {op.name}: {wait}" for wait in DeviceTrace(body, computed).waits]
        condition = DeviceTrace(find_function(self.graph, op, "cond"), computed)
        self.waits += [f"the end of {op.name}"] if condition.waits or any(condition.outputs) else []
        self.add(x for x, is_computed in zip(op.outputs, computed, strict=True) if is_computed)

    def compute(self, op: tf.Operation, computed: list[bool]) -> None:
        kernel = find_kernel(op)
        on_host = (
            set(kernel.host_memory_arg)
            if kernel
            else {*name_arguments(op, op.op_def.input_arg), *name_arguments(op, op.op_def.output_arg)}
        )
        arguments = zip(name_arguments(op, op.op_def.input_arg), computed, strict=True)
        self.waits += [f"{op.type} {op.name}: {name}" for name, is_computed in arguments if is_computed and name in on_host]
        if any(computed) or op.type == "Cast":  # casts run on the device, even those of what the host knows
            results = zip(name_arguments(op, op.op_def.output_arg), op.outputs, strict=True)
            self.add(x for name, x in results if name not in on_host)

    def add(self, tensors: Iterable[tf.Tensor]) -> None:
        self.computed |= {x.ref() for x in tensors}


def list_waits(graph: Any) -> list[str]:
    """List what waits in a graph whose inputs are all on the device, except int32, which TensorFlow keeps on the host."""
    return DeviceTrace(graph, [x.dtype != tf.int32 for x in graph.inputs]).waits


@pytest.fixture(scope="module", autouse=True)
def _gpu_kernels() -> None:
    if not any(kernel.device_type == "GPU" for kernel in list_kernels("Conv2D")):
        pytest.skip("this TensorFlow has no kernels for a GPU: that of Linux on x86 has")


@pytest.mark.parametrize(
    ("name", "precision", "bands", "has_mask"),
    [
        *((name, "float32", 1, False) for name in sorted(PRESETS)),
        ("painterly", "mixed", 2, False), ("pytorch-tutorial", "mixed", 2, True), ("tf-tutorial", "mixed", 1, False),
    ],
)  # fmt: skip
def test_no_host_waits_for_its_gpu_between_two_steps(
    tiny: Backbone, name: str, precision: Precision, bands: int, has_mask: bool
) -> None:
    """In graphs of few blocks, all but one of them in bands: deeper blocks add more of the same operations."""
    method = PRESETS[name].method
    content = replace(method.content, layers=((f"block{bands + 1}_conv1", 1.0),))
    style = replace(method.style, layers=tuple((f"block{block + 1}_conv1", 1.0) for block in range(bands + 1)))
    method = strip_numbers(replace(method, content=content, style=style, precision=precision))
    advance = transfer._compile_graphs(tiny, method, has_mask, bands).advance.get_concrete_function()
    assert [wait for wait in list_waits(advance.graph) if wait.startswith(("a round", "the end"))] == []


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_gpu_adds_bands_by_indices_of_its_own(dtype: tf.DType) -> None:
    some = tf.TensorSpec((None, None, None, 8), dtype)

    @tf.function(input_signature=[some, tf.TensorSpec((), tf.int32), some], autograph=False)
    def add(buffer, top, rows):
        return _add_rows(buffer, top, rows, True)

    graph = add.get_concrete_function().graph
    assert list_waits(graph) == []
    assert DeviceTrace(graph, [True, False, True]).outputs == [True]
    (scatter,) = [op for op in graph.get_operations() if op.type == "ScatterNdNonAliasingAdd"]
    assert scatter.inputs[1].dtype == tf.int64


def test_waits_are_found() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None,)), tf.TensorSpec((), tf.int32)])
    def several(x, n):
        for _ in tf.range(n):
            if tf.reduce_any(x < 0.0):
                x += 1.0
            for _ in tf.range(tf.cast(x[0], tf.int32)):
                x *= 2.0
        return tf.gather(x, tf.where(x > 0.0))

    found = "\n".join(list_waits(several.get_concrete_function().graph))
    assert "a round of while: StatelessIf" in found
    assert "a round of while: the end of while/while" in found

    @tf.function(input_signature=[tf.TensorSpec((None,)), tf.TensorSpec((), tf.int32)])
    def none(x, n):
        return tf.while_loop(lambda k, _: k < n, lambda k, x: (k + 1, tf.where(x < 0.0, x + 1.0, x)), (tf.constant(0), x))[1]

    assert list_waits(none.get_concrete_function().graph) == []
