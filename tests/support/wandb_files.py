"""Reading the offline file of a wandb run: a log of records in blocks (LevelDB's log format), each a protocol buffer of wandb's."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

_HEADER, _BLOCK, _RECORD = 7, 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What an offline file says: settings and results by name, and the history's lines in their order."""

    id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.history]


def read_offline(directory: Path) -> OfflineRun:
    """Read the one `run-*.wandb` file of an offline run's directory."""
    [file] = directory.glob("run-*.wandb")
    found = OfflineRun()
    for content in _records(file.read_bytes()):
        record = protocol.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            found.id = record.run.run_id
            found.config |= _items(record.run.config.update)
        elif record.HasField("summary"):
            found.summary |= _items(record.summary.update)
        elif record.HasField("history"):
            found.history.append(_items(record.history.item))
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    at, begun = _HEADER, b""
    while at + _RECORD.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _RECORD.size:
            at += left
            continue
        _, size, kind = _RECORD.unpack_from(data, at)
        part = data[at + _RECORD.size : at + _RECORD.size + size]
        at += _RECORD.size + size
        begun = part if kind in (_WHOLE, _FIRST) else begun + part
        if kind in (_WHOLE, _LAST):
            yield begun
