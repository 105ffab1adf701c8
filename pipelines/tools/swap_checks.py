"""What must hold before a device is formatted or a swap file is made: looked up from the kernel, the usual tools, and the bytes.

Every doubt refuses: a device that cannot be read, a tool that names a signature, a byte that is not zero where file systems,
partition tables and RAID members put their marks.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from adapt.core.errors import ConfigError

_EDGE_BYTES = 1 << 20
_PAGE_SIZES = (4096, 8192, 16384, 65536)
_SWAP_MAGICS = (b"SWAPSPACE2", b"SWAP-SPACE")
_TOOL_TIMEOUT_S = 30
_USABLE_SHARE = 0.97  # the rest is the file system's own
# Swap files cannot live on these, or only under conditions that are not checked here.
_NO_SWAP_ON = ("tmpfs", "ramfs", "overlay", "nfs", "nfs4", "cifs", "btrfs", "zfs", "squashfs", "9p", "fuse")
# Offset and mark of what is most often found, so that the refusal can name it; anything else is refused unnamed.
_SIGNATURES = (
    ("ext2, ext3 or ext4", 1080, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 65600, b"_BHRfS_M"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("fat32", 82, b"FAT32   "),
    ("an encrypted volume (LUKS)", 0, b"LUKS\xba\xbe"),
    ("an LVM volume", 512, b"LABELONE"),
    ("a RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("an MBR partition table", 510, b"\x55\xaa"),
    *((f"swap ({mark.decode()})", page - len(mark), mark) for page in _PAGE_SIZES for mark in _SWAP_MAGICS),
)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A line of /proc/self/mounts: what is mounted, where, and its kind."""

    source: str
    place: str
    kind: str


class Machine:
    """The running system, as far as swap is concerned; tests put another in its place."""

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def run(self, command: list[str]) -> int:
        """Run a command without a shell and with nobody to answer its questions; return its exit code."""
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        except OSError:
            return 127

    def is_block_device(self, path: Path) -> bool:
        return stat.S_ISBLK(path.stat().st_mode)

    def is_busy(self, device: Path) -> bool:
        """Whether the kernel holds a device for anyone: a mount in any namespace, RAID, swap."""
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise
        return False

    def size_of(self, path: Path) -> int:
        with path.open("rb") as stream:
            return stream.seek(0, os.SEEK_END)

    def mounts(self) -> list[Mount]:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        parts = [[_unescaped(word) for word in line.split()] for line in lines]
        return [Mount(source=part[0], place=part[1], kind=part[2]) for part in parts if len(part) > 2]

    def active_swaps(self) -> set[str]:
        lines = Path("/proc/swaps").read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        return {_unescaped(line.split()[0]) for line in lines if line.split()}

    def parts_and_holders(self, device: Path) -> list[str]:
        """Return the names of a device's partitions and of the devices (RAID, LVM, encryption) that are built on it."""
        place = Path("/sys/class/block") / device.name
        found = [child.parent.name for child in place.glob("*/partition")]
        return sorted([*found, *(holder.name for holder in place.glob("holders/*"))])

    def tools_say(self, device: Path) -> str | None:
        """Return what blkid or lsblk find on a device, or None; missing tools find nothing."""
        if shutil.which("blkid"):
            done = self.ask(["blkid", "-p", "-o", "export", str(device)])
            kinds = [line for line in done.splitlines() if line.startswith(("TYPE=", "PTTYPE=", "USAGE=", "AMBIVALENT="))]
            if kinds:
                return ", ".join(kinds)
        if shutil.which("lsblk"):
            try:
                listed = json.loads(self.ask(["lsblk", "-J", "-o", "NAME,FSTYPE,PTTYPE,MOUNTPOINT", str(device)]) or "{}")
            except json.JSONDecodeError:
                return "something that lsblk reports in an unknown form"
            for entry in listed.get("blockdevices", []):
                named = [f"{key}={entry[key]}" for key in ("fstype", "pttype", "mountpoint") if entry.get(key)]
                if named or entry.get("children"):
                    return ", ".join(named) or "devices built on it"
        return None

    def ask(self, command: list[str]) -> str:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout

    def free_bytes(self, directory: Path) -> int:
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize


def refuse_device(device: str, size: int, machine: Machine) -> None:
    """Raise ConfigError unless a device is there, unused, empty, and large enough for a swap file of `size` bytes."""
    try:
        path = Path(device).resolve(strict=True)
        is_block = machine.is_block_device(path)
    except OSError:
        raise ConfigError(f"{device}: no such device") from None
    if not is_block:
        raise ConfigError(f"{device}: is no block device; give files=[...] for a swap file on a mounted file system")
    for mount in machine.mounts():
        if mount.source.startswith("/") and Path(mount.source).resolve() == path:
            raise ConfigError(f"{device}: is mounted at {mount.place}; it is not touched")
    if str(path) in machine.active_swaps():
        raise ConfigError(f"{device}: is in use as swap; it is not touched")
    if parts := machine.parts_and_holders(path):
        raise ConfigError(f"{device}: carries {', '.join(parts)}; it is not touched")
    if said := machine.tools_say(path):
        raise ConfigError(f"{device}: holds something already ({said}); it is never formatted")
    try:
        if machine.is_busy(path):
            raise ConfigError(f"{device}: is in use; it is not touched")
        capacity = machine.size_of(path)
        content = content_of(path, capacity)
    except OSError as error:
        raise ConfigError(f"{device}: cannot be read ({error.strerror}), so nobody knows what it holds; run as root") from error
    if content is not None:
        raise ConfigError(f"{device}: holds {content}; it is never formatted")
    if size > _USABLE_SHARE * capacity:
        raise ConfigError(f"{device}: has {capacity >> 30} GiB, too few for a file system with a swap file of {size >> 30}")


def content_of(path: Path, size: int) -> str | None:
    """Return what the first and last MiB of a device hold, or None if they are all zeros."""
    with path.open("rb") as stream:
        head = stream.read(_EDGE_BYTES)
        stream.seek(max(size - _EDGE_BYTES, 0))
        tail = stream.read(_EDGE_BYTES)
    for name, offset, mark in _SIGNATURES:
        if head[offset : offset + len(mark)] == mark:
            return name
    if not head:
        return "nothing at all: it has no size"
    if any(head):
        return "data of an unknown kind in its first MiB"
    return "data of an unknown kind in its last MiB" if any(tail) else None


def refuse_new_file(file: Path, machine: Machine) -> None:
    """Raise ConfigError unless a swap file can be made here, writing over nothing."""
    if file.exists() or file.is_symlink():
        raise ConfigError(f"{file}: exists already; it is never written over")
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent}: no such directory")
    below = [mount for mount in machine.mounts() if file.parent.resolve().is_relative_to(mount.place)]
    # The last of the deepest: a later mount hides an earlier one at the same place.
    kind = max(enumerate(below), key=lambda entry: (len(entry[1].place), entry[0]))[1].kind if below else "unknown"
    if kind.split(".")[0] in _NO_SWAP_ON:
        raise ConfigError(f"{file.parent}: is on {kind}, which cannot hold a swap file; give a place on ext4 or xfs, or a device")


def is_swap_file(file: Path) -> bool:
    """Whether a regular file carries a swap signature."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(max(_PAGE_SIZES))
    return any(head[page - 10 : page] in _SWAP_MAGICS for page in _PAGE_SIZES)


def _unescaped(word: str) -> str:
    """Undo the kernel's octal escapes of spaces and the like."""
    return word.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
