"""Tensors in files: what a block makes there, that values are those of memory, and a disk that is too small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.train import scratch_file
from adapt.train.file_tensors import FreshTensors, TensorFiles, in_buffer

LEAST = 256


def files_in(place: Path) -> TensorFiles:
    return TensorFiles(place / "work" / ".tensors", "weights", "offload.trained_weights=memory")


def is_in_a_file(tensor: Tensor) -> bool:
    """Whether the tensor's address is in a mapping of a file that has no name any more."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return ".tensors" in line and line.endswith("(deleted)")
    return False


def test_new_large_tensors_are_in_files_and_have_the_values_of_memory(tmp_path: Path) -> None:
    source = torch.arange(300, dtype=torch.float32)
    pieces = [source[:7], source[7:7], source[100:]]

    def made() -> dict[str, Tensor]:
        return {
            "zeros": torch.zeros(3, 100, dtype=torch.bfloat16),
            "zeros like": torch.zeros_like(source),
            "clone": source.clone(),
            "rounded": source.to(torch.bfloat16),
            "joined": torch.cat(pieces),
            "flat": nn.utils.parameters_to_vector(pieces),
        }

    with FreshTensors(files_in(tmp_path), LEAST):
        found = made() | {"empty": torch.empty(20, 20).fill_(2.0)}
        small, strided = torch.zeros(4), torch.arange(300.0).view(3, 100).t().clone()
    assert [name for name, tensor in found.items() if not is_in_a_file(tensor)] == []
    assert not is_in_a_file(small) and not is_in_a_file(strided)
    for name, wanted in (made() | {"empty": torch.full((20, 20), 2.0)}).items():
        assert found[name].dtype is wanted.dtype and torch.equal(found[name], wanted), name
    assert list((tmp_path / "work").iterdir()) == []


def test_a_model_without_storage_is_born_in_files(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(16, 16)
    with FreshTensors(files_in(tmp_path), LEAST, only_births=True):
        model.to_empty(device="cpu")
        assert not is_in_a_file(torch.zeros(1000)) and not is_in_a_file(model.weight.detach().clone())
    assert is_in_a_file(model.weight) and not is_in_a_file(model.bias)
    model.weight.data.fill_(1.0)
    assert model.weight.sum() == 256


def test_a_buffer_is_taken_again_and_what_is_larger_goes_to_memory() -> None:
    buffer = torch.empty(1024, dtype=torch.uint8).fill_(7)
    with in_buffer(buffer, LEAST):
        first = torch.zeros(128)
        assert first.data_ptr() == buffer.data_ptr() and not first.any()
        second = torch.arange(256.0)[:200].clone()
        larger = torch.zeros(512)
    assert second.data_ptr() == buffer.data_ptr() and second[199] == 199
    assert larger.data_ptr() != buffer.data_ptr()


def test_a_disk_that_is_too_small_is_one_line_with_the_setting_that_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(scratch_file.os, "posix_fallocate", full)
    with pytest.raises(ConfigError) as refusal, FreshTensors(files_in(tmp_path), LEAST):
        torch.zeros(1000)
    said = str(refusal.value)
    assert "no 0.0 GB of scratch space for weights" in said and said.endswith("or set offload.trained_weights=memory")
    assert "\n" not in said
