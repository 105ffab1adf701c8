"""How much memory this process takes.

Peaks are those of resident memory since `forget_peak` (Linux, /proc/self/clear_refs), counted above what stood there before.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.001
STATUS = Path("/proc/self/status")


def memory_mib(field: str) -> float:
    """Return a field of this process's status, e.g. VmRSS, in MiB."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    """Let VmHWM, the peak of resident memory, count from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def private_growth_mib(work: Callable[[], object]) -> float:
    """Return how far private memory rises while `work` is done, above what is in use when it begins.

    The kernel keeps the peak of resident memory, which counts the pages of files too; what those grew by is taken off. Memory that
    was freed before but is still held is handed back first: it would hide the growth.
    """
    ctypes.CDLL(None).malloc_trim(0)
    resident, files = memory_mib("VmRSS"), memory_mib("RssFile")
    forget_peak()
    work()
    return memory_mib("VmHWM") - resident - max(memory_mib("RssFile") - files, 0.0)


def private_mib() -> float:
    """Return the private memory in use: without pages of files, and without what was freed but is still held."""
    ctypes.CDLL(None).malloc_trim(0)
    return memory_mib("RssAnon")


def private_peak_mib(work: Callable[[], object]) -> float:
    """Return the most private memory while `work` is done, looked at every millisecond; pages of files are not counted."""
    most, is_done = [private_mib()], threading.Event()

    def watch() -> None:
        while not is_done.wait(_POLL_S):
            most.append(max(most.pop(), memory_mib("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        is_done.set()
        watcher.join()
    return max(most[0], memory_mib("RssAnon"))
