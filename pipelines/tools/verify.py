"""`python -m pipelines.verify checkpoint=DIR tokens=ids.npy logits=expected.npy [tolerance=1e-4]`

Compare a checkpoint's logits with a reference: what everyone who converts a checkpoint needs. Prints the largest difference, and
the first one beyond the tolerance by row, position and token.

  checkpoint   an artifact or export that holds a model, a bare checkpoint, or a Hugging Face directory; no tokenizer is needed
  tokens       whole numbers [rows, positions] or [positions], saved by numpy; every row is a document from its start
  logits       the reference for them [rows, positions, vocabulary] or [positions, vocabulary]
  tolerance    the largest absolute difference that passes (1e-4)

Weights and arithmetic are fp32. Exit code 0: within the tolerance; 1: different; 2: bad input.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError, DataError
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.model.inputs import ModelInputs
from pipelines.stages.models import open_model_artifact, weights_of

DIFFERENT_CODE = 1
_BLOCK_POSITIONS = 256


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is compared: a checkpoint, token ids, and the logits they should give."""

    checkpoint: str
    tokens: str
    logits: str
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise ConfigError(f"tolerance: {self.tolerance} is not a number of at least 0")


@dataclass
class Comparison:
    """The largest difference so far with its place, the first one beyond the tolerance, and how many there are."""

    largest: float = -1.0
    place: tuple[int, int, int] = (0, 0, 0)
    first: tuple[int, int, int] | None = None
    expected: float = 0.0
    found: float = 0.0
    beyond: int = 0
    compared: int = 0


def main(config: VerifyConfig) -> int:
    """Compare and print; return the exit code.

    Raises:
        CheckpointError: there is no model at `checkpoint`.
        DataError: a file of numbers is missing, damaged, or does not fit the model or the other file.
    """
    artifact = open_model_artifact(Path(config.checkpoint))
    ids_BT, expected_BTV = _read(Path(config.tokens), "tokens", 2), _read(Path(config.logits), "logits", 3)
    if not np.issubdtype(ids_BT.dtype, np.integer):
        raise DataError(f"{config.tokens}: holds {ids_BT.dtype}, not whole numbers")
    if not np.issubdtype(expected_BTV.dtype, np.floating):
        raise DataError(f"{config.logits}: holds {expected_BTV.dtype}, not floating-point numbers")
    if expected_BTV.shape[:2] != ids_BT.shape:
        raise DataError(
            f"{config.logits}: is {_size(expected_BTV)}, but {config.tokens} is {_size(ids_BT)}; rows and positions differ"
        )
    model = load_model(weights_of(artifact))
    _refuse_misfit(config, model, ids_BT, expected_BTV)
    comparison = compare(model, ids_BT, expected_BTV, config.tolerance)
    sys.stdout.write(_told(config, comparison) + "\n")
    return 0 if comparison.first is None else DIFFERENT_CODE


@torch.no_grad()
def compare(model: GPT | HFModel, ids_BT: NDArray[Any], expected_BTV: NDArray[Any], tolerance: float) -> Comparison:
    """Compare row by row, some positions at a time, in reading order. A value that is no number differs from everything."""
    comparison = Comparison()
    for row, ids_T in enumerate(ids_BT):
        ids = torch.from_numpy(np.array(ids_T, np.int64)).unsqueeze(0)
        positions = torch.arange(ids.shape[1]).unsqueeze(0)
        inputs = ModelInputs(ids_BT=ids, positions_BT=positions, documents_BT=torch.ones_like(ids), is_packed=False)
        hidden_TH = model(inputs).hidden_BTH[0]
        for start in range(0, len(hidden_TH), _BLOCK_POSITIONS):
            found_NV = model.logits(hidden_TH[start : start + _BLOCK_POSITIONS]).float()
            block = np.array(expected_BTV[row, start : start + _BLOCK_POSITIONS], dtype=np.float32)
            _take(comparison, row, start, torch.from_numpy(block), found_NV, tolerance)
    return comparison


def _take(comparison: Comparison, row: int, start: int, expected_NV: Tensor, found_NV: Tensor, tolerance: float) -> None:
    difference_NV = (expected_NV - found_NV).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    difference_NV[expected_NV == found_NV] = 0.0  # two equal infinities
    wide = difference_NV > tolerance
    width = difference_NV.shape[1]
    largest = int(difference_NV.argmax())
    if float(difference_NV.flatten()[largest]) > comparison.largest:
        comparison.largest = float(difference_NV.flatten()[largest])
        comparison.place = (row, start + largest // width, largest % width)
    if comparison.first is None and bool(wide.any()):
        first = int(wide.flatten().int().argmax())
        comparison.first = (row, start + first // width, first % width)
        comparison.expected, comparison.found = float(expected_NV.flatten()[first]), float(found_NV.flatten()[first])
    comparison.beyond += int(wide.sum())
    comparison.compared += difference_NV.numel()


def _told(config: VerifyConfig, c: Comparison) -> str:
    row, position, token = c.place
    lines = [f"max difference {c.largest:.3g} at row {row}, position {position}, token {token}, of {c.compared:,} logits"]
    if c.first is None:
        lines.append(f"equal within {config.tolerance:g}")
    else:
        row, position, token = c.first
        lines.append(
            f"first difference beyond {config.tolerance:g}: row {row}, position {position}, token {token}: "
            f"expected {c.expected:.6g}, found {c.found:.6g}"
        )
        lines.append(f"{c.beyond:,} of {c.compared:,} logits are beyond it")
    return "\n".join(lines)


def _read(path: Path, key: str, dimensions: int) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {key}= takes an array saved by numpy (.npy)") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array saved by numpy ({str(error).splitlines()[0] if str(error) else 'empty'})") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (dimensions - 1, dimensions) or array.size == 0:
        what = f"{array.ndim} dimensions" if isinstance(array, np.ndarray) and array.size else "no single array of numbers"
        raise DataError(f"{path}: has {what}; {key}= takes {dimensions} (or {dimensions - 1} for one row)")
    return array[None] if array.ndim == dimensions - 1 else array


def _refuse_misfit(config: VerifyConfig, model: GPT | HFModel, ids_BT: NDArray[Any], expected_BTV: NDArray[Any]) -> None:
    vocabulary = expected_BTV.shape[2]
    if vocabulary != model.vocab_size:
        raise DataError(
            f"{config.logits}: has a vocabulary of {vocabulary}, the model's is {model.vocab_size}; cut padding off the reference"
        )
    if ids_BT.min() < 0 or ids_BT.max() >= model.vocab_size:
        raise DataError(
            f"{config.tokens}: ids go from {ids_BT.min()} to {ids_BT.max()}, the model's from 0 to {model.vocab_size - 1}"
        )
    if ids_BT.shape[1] > model.context_length:
        raise DataError(f"{config.tokens}: has {ids_BT.shape[1]} positions, the model takes {model.context_length}")


def _size(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape))
