"""Fills a small file system while a run trains on it, frees it, and runs again; a process in a mount namespace of its own.

Arguments: the mount point, where to leave what was seen (JSON), and the run's command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZE = "96m"
NOT_PERMITTED = 77


def mounted(place: Path) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True)
    return done.returncode == 0


def states(place: Path) -> list[Path]:
    return sorted(state for state in place.glob("runs/store/pretrain/.*.work/step-*") if (state / "state.json").is_file())


def fill(ballast: Path) -> None:
    """Take whatever is free."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while stream.write(b"\0" * size) == size:
                    pass


def main(place: Path, report: Path, command: list[str]) -> int:
    if not mounted(place):
        return NOT_PERMITTED
    said = report.with_suffix(".txt")
    seen: dict[str, Any] = {}
    ballast = place / "ballast"
    with said.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            if states(place):
                fill(ballast)
            time.sleep(0.005)
    seen |= {"code": process.returncode, "said": said.read_text(encoding="utf-8")}
    seen["states"] = [state.name for state in states(place)]
    seen["unfinished"] = [str(left) for left in place.glob("runs/store/pretrain/.*.work/.step-*")]
    ballast.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    seen |= {"code again": done.returncode, "said again": done.stderr}
    seen["weights"] = [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(place.glob("runs/store/pretrain/*/*.safetensors"))
    ]
    report.write_text(json.dumps(seen), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
