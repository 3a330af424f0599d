"""A traced sampler as an ONNX file: converted by torch, its precision by onnxruntime, run by onnxruntime.

float32    as torch converts it
float16    onnxruntime.transformers.float16: weights and computation; inputs and outputs stay as they are
int8       onnxruntime.quantization.quantize_dynamic: weights of matrix products and convolutions
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..system.files import write_atomically

Precision = Literal["float32", "float16", "int8"]
PRECISIONS = get_args(Precision)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_FILE_BYTES = 2**31 - 2**20
"""Largest ONNX model that fits one file; the format ends at 2 GiB."""
QUANTISED = {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
"""Operations of int8 in ONNX and onnxruntime."""


def check_installed() -> None:
    """Raise an error if a package that ONNX files need is missing.

    Raises:
        ValueError: it is, with the line that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX files need {', '.join(missing)}: pip install 'flowmaps[export]', or take a path .pt2.")


class OnnxFile:
    """An ONNX model in memory, that onnxruntime has opened.

    Args:
        program: the sampler, traced.
        names: of its inputs.
        metadata: to be written in it, by name.
        precision: of its weights.

    Raises:
        ValueError: it is too large, or onnxruntime does not have the precision for its operations.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        names: Sequence[str],
        metadata: Mapping[str, str],
        precision: Precision,
    ) -> None:
        import onnxruntime

        self.names = tuple(names)
        model = _converted(program, self.names)
        if model.ByteSize() > MAX_FILE_BYTES:
            raise ValueError(
                f"the map takes {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file holds 2: take a path .pt2."
            )
        if precision != "float32":
            model = _in_float16(model) if precision == "float16" else _in_int8(model)
        _name_batch(model)
        for name, value in metadata.items():
            model.metadata_props.add(key=name, value=value)
        self.content = model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own classes
            raise ValueError(
                f"onnxruntime cannot run this map in {precision} ({' '.join(str(error).split())[:200]}): take another "
                "precision."
            ) from error

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Samples of inputs, by onnxruntime on the CPU."""
        feed = {name: value.numpy() for name, value in zip(self.names, inputs, strict=True)}
        return torch.from_numpy(self.session.run(["samples"], feed)[0])

    def write(self, path: Path) -> None:
        """Write the file."""
        write_atomically(path, self.content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the notes of torch's and onnxruntime's converters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _converted(program: torch.export.ExportedProgram, names: Sequence[str]) -> Any:
    """The program as an ONNX model.

    Raises:
        ValueError: ONNX has no operation for one of torch's.
    """
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    try:
        with torch.no_grad(), _quiet():
            made = torch.onnx.export(program, input_names=list(names), output_names=["samples"], **options)
    except torch.onnx.errors.OnnxExporterError as error:
        words = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"the map has no form in ONNX ({words}): take a path .pt2.") from error
    assert made is not None
    return made.model_proto


def _in_float16(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        return convert_float_to_float16(model, keep_io_types=True)


def _in_int8(model: Any) -> Any:
    """The model with weights in int8.

    Raises:
        ValueError: there is no layer that onnxruntime quantises.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8)  # its convolutions take no signed weights
        made = onnx.load(path)
    if not any(node.op_type in QUANTISED for node in made.graph.node):
        raise ValueError("onnxruntime found no layer to write in int8: take --precision float16.")
    return made


def _name_batch(model: Any) -> None:
    """Call the free axis of inputs and outputs `batch`, which torch gives a number for a name."""
    graph = model.graph
    symbols = {d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim if d.dim_param}
    for value in (*graph.input, *graph.output):
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param in symbols:
                d.dim_param = "batch"
    del graph.value_info[:]  # shapes in between, by the old name; onnxruntime infers them
