"""`make gpu-check`: all that wants a GPU, step by step, resumable; results in `gpu_check/` as one JSON and one Markdown file.

Correctness against the CPU first, then the benchmarks `moe` and `step`, a case at a time, so that a step stays under 8 minutes.
A step that passed on this device is not run again (`force=true` does); without a GPU every step is skipped and says why.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, ConfigError
from adapt.core.faults import writable
from adapt.core.json_files import read_object
from pipelines.ranks.launch import USER_ERROR_CODE
from pipelines.tools.gpu_correctness import CHECKS

_LIMIT_S = 8 * 60
_BENCHMARKS: Mapping[str, Sequence[str]] = {
    "bench moe, 32 experts": ("moe", "cases=32x16384", "groups=alone", "device=cuda"),
    "bench moe, 64 experts": ("moe", "cases=64x16384", "groups=alone", "device=cuda"),
    "bench step, 1.3b_moe32": ("step", "models=1.3b_moe32", "device=cuda"),
}
_NO_GPU = "there is no CUDA device"


def run_steps(place: Path, is_forced: bool) -> dict[str, Any]:
    """Run what has not passed yet, writing results after each step, and return them all."""
    file = place / "gpu_check.json"
    machine = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "torch": torch.__version__}
    results: dict[str, Any] = {"machine": machine, "steps": {}}
    if file.is_file() and not is_forced:
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["machine"] == machine:
            results = before
    for name in (*CHECKS, *_BENCHMARKS):
        if results["steps"].get(name, {}).get("status") == "passed":
            continue
        started = time.monotonic()
        outcome = _run_step(name) if torch.cuda.is_available() else {"status": "skipped", "reason": _NO_GPU}
        results["steps"][name] = {**outcome, "seconds": round(time.monotonic() - started, 1)}
        with writable(place):
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(results, indent=1) + "\n")
            write_atomically(place / "gpu_check.md", as_markdown(results))
        sys.stdout.write(_line(name, results["steps"][name]) + "\n")
    return results


def check_rows(name: str, device: torch.device) -> dict[str, Any]:
    """Run one correctness check: failed where any comparison is out of its bound."""
    compared = CHECKS[name](device)
    wrong = [one for one in compared if not one.is_right]
    rows = [dataclasses.asdict(one) for one in compared]
    if not wrong:
        return {"status": "passed", "rows": rows}
    worst = max(wrong, key=lambda one: one.error / one.bound)
    reason = f"{len(wrong)} of {len(compared)} differ; worst: {worst.what}, {worst.error:.2g} over {worst.bound:.2g}"
    return {"status": "failed", "reason": reason, "rows": rows}


def as_markdown(results: Mapping[str, Any]) -> str:
    """Lay results out as one table of steps and one table per benchmark."""
    machine = results["machine"]
    lines = [
        f"# GPU check\n\n{machine['device'] or 'no GPU'}, torch {machine['torch']}\n",
        "| step | outcome | seconds |",
        "|---|---|---|",
    ]
    for name, step in results["steps"].items():
        lines.append(f"| {name} | {_said(step)} | {step['seconds']} |")
    for name in _BENCHMARKS:
        rows = results["steps"].get(name, {}).get("rows")
        if rows:
            lines += [f"\n## {name}\n", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
            lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _run_step(name: str) -> dict[str, Any]:
    if name in CHECKS:
        return check_rows(name, torch.device("cuda"))
    return _run_benchmark(_BENCHMARKS[name])


def _run_benchmark(options: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark in a process of its own, which ends after its time is up."""
    scratch = Path(f".gpu_check-{options[0]}.json")
    command = [sys.executable, "-m", "pipelines.bench", *options, f"out={scratch}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode:
            return {"status": "failed", "reason": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"}
        return {"status": "passed", "rows": read_object(scratch)["rows"]}
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took more than {_LIMIT_S} seconds"}
    finally:
        scratch.unlink(missing_ok=True)


def _said(step: Mapping[str, Any]) -> str:
    return step["status"] + (f": {step['reason']}" if "reason" in step else "")


def _line(name: str, step: Mapping[str, Any]) -> str:
    return f"{name}: {_said(step)} ({step['seconds']} s)"


def main(arguments: Sequence[str]) -> int:
    """Run the check; 1 where a step failed."""
    try:
        options = dict(argument.partition("=")[::2] for argument in arguments)
        if strange := set(options) - {"out", "force"}:
            raise ConfigError(f"gpu_check: unknown option '{min(strange)}'; there are: out=DIR, force=true")
        results = run_steps(Path(options.get("out", "gpu_check")), options.get("force") == "true")
    except AdaptError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR_CODE
    return int(any(step["status"] == "failed" for step in results["steps"].values()))
