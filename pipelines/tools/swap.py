"""`python -m pipelines.swap plan|apply|undo devices=[/dev/nvme1n1,...] files=[/big/swap,...] size_gib=N [key=value ...]`

NVMe swap as in the article, where loading 16B parameters took 2 TB of it. (This project's own loading does not need it.) The first
word is the action, or `action=plan`.

  plan    look at the targets and print the exact commands of apply and of undo; changes nothing
  apply   print them and run apply's, only with confirm=true and as root; stops at the first failure and prints how to undo
  undo    the reverse of apply for the same keys: swapoff, remove the swap files, umount; only with confirm=true

  devices      empty whole devices or partitions; each gets ext4, mounted at `mount_root`/swap-<device>, and a swap file
  files        swap files to make on file systems that are mounted already; they must not exist yet
  size_gib     size of each swap file, whole GiB
  fill         dd (default: works on every file system, as in the article) or fallocate (at once; ext4 and xfs)
  priority     0 to 32767 (10); targets of one priority are used in turn, which adds their speed up
  mount_root   where devices are mounted (/mnt)
  confirm      true runs the commands; without it apply and undo print them and end with code 2

A device is refused, whatever else is said, if it is mounted or busy, is swap or another device's part, has partitions, or holds
anything: a signature that blkid or lsblk name, or any byte that is not zero in its first and last MiB. There is no key that
overrides this; clear a device that may go with `wipefs -a` and zeros on its first and last MiB yourself. undo removes only files
that carry a swap signature, and leaves the file system it made. Exit code 0, or 2 after one line.
"""

from __future__ import annotations

import enum
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from adapt.core.errors import ConfigError
from pipelines.tools.swap_checks import Machine, is_swap_file, refuse_device, refuse_new_file

SWAP_FILE = "swapfile"
_HIGHEST_PRIORITY = 32767


class Action(enum.Enum):
    """Show, do, or undo."""

    PLAN = "plan"
    APPLY = "apply"
    UNDO = "undo"


class Fill(enum.Enum):
    """How a swap file gets its blocks."""

    DD = "dd"
    FALLOCATE = "fallocate"


@dataclass(frozen=True, kw_only=True)
class SwapConfig:
    """Targets and sizes."""

    action: Action
    size_gib: int
    devices: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    fill: Fill = Fill.DD
    priority: int = 10
    mount_root: str = "/mnt"
    confirm: bool = False

    def __post_init__(self) -> None:
        if not self.devices and not self.files:
            raise ConfigError("no target given; set devices=[/dev/...] or files=[/path/to/a/new/file]")
        targets = [str(Path(target).resolve()) for target in (*self.devices, *self.files)]
        twice = [target for target in targets if targets.count(target) > 1]
        if twice:
            raise ConfigError(f"{twice[0]}: is given twice")
        relative = [target for target in (*self.devices, *self.files, self.mount_root) if not target.startswith("/")]
        if relative:
            raise ConfigError(f"{relative[0]}: give the whole path, from / on")
        if self.size_gib < 1:
            raise ConfigError(f"size_gib: {self.size_gib} is less than 1")
        if not 0 <= self.priority <= _HIGHEST_PRIORITY:
            raise ConfigError(f"priority: {self.priority} is not between 0 and {_HIGHEST_PRIORITY}")

    def mount_of(self, device: str) -> Path:
        return Path(self.mount_root) / f"swap-{Path(device).name}"

    def swap_files(self) -> list[Path]:
        """Return the swap files of all targets, devices first."""
        return [*(self.mount_of(device) / SWAP_FILE for device in self.devices), *map(Path, self.files)]


Command = list[str]


def apply_commands(config: SwapConfig) -> list[Command]:
    """Return what makes and switches on the swap, in order."""
    commands: list[Command] = []
    for device in config.devices:
        mount = str(config.mount_of(device))
        # Without -F, mkfs asks before it writes over anything that it knows; there is nobody to answer, so it stops.
        commands += [["mkfs.ext4", device], ["mkdir", "-p", mount], ["mount", device, mount]]
    for file in map(str, config.swap_files()):
        if config.fill is Fill.FALLOCATE:
            commands.append(["fallocate", "-l", f"{config.size_gib}GiB", file])
        else:
            commands.append(["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={config.size_gib * 1024}", "conv=excl,fsync"])
        commands += [["chmod", "600", file], ["mkswap", file], ["swapon", "-p", str(config.priority), file]]
    return commands


def undo_commands(config: SwapConfig) -> list[Command]:
    """Return what switches the swap off and takes it away again, in order."""
    commands: list[Command] = []
    for file in map(str, config.swap_files()):
        commands += [["swapoff", file], ["rm", file]]
    for device in config.devices:
        commands += [["umount", str(config.mount_of(device))], ["rmdir", str(config.mount_of(device))]]
    return commands


def main(config: SwapConfig, machine: Machine | None = None) -> int:
    """Do what `action` says; return the exit code.

    Raises:
        ConfigError: a target is refused, `confirm=true` is missing, or a command failed.
    """
    machine = machine or Machine()
    if config.action is Action.UNDO:
        commands = _undo_of_what_is_there(config, machine)
    else:
        _refuse(config, machine)
        commands = apply_commands(config)
    _print(f"# {'undo' if config.action is Action.UNDO else 'apply'} (as root)", commands)
    if config.action is Action.PLAN:
        _print("# undo (as root)", undo_commands(config))
        return 0
    if not config.confirm:
        raise ConfigError(f"nothing was run; {config.action.value} runs the commands above only with confirm=true")
    if not machine.is_root():
        raise ConfigError("nothing was run; the commands above need root")
    for number, command in enumerate(commands):
        code = machine.run(command)
        if code != 0:
            if config.action is Action.APPLY and number:
                _print("# to undo what was done, the fitting ones of", undo_commands(config))
            raise ConfigError(
                f"`{shlex.join(command)}` failed with code {code}; {number} of {len(commands)} commands were done before it"
            )
    return 0


def _refuse(config: SwapConfig, machine: Machine) -> None:
    """Raise ConfigError for the first target that must not be touched, or cannot hold its swap file."""
    size = config.size_gib << 30
    places = {mount.place for mount in machine.mounts()}
    for device in config.devices:
        refuse_device(device, size, machine)
        mount = config.mount_of(device)
        if str(mount) in places or mount.exists() and (not mount.is_dir() or any(mount.iterdir())):
            raise ConfigError(f"{mount}: is in use; set mount_root= to another place")
    needed: dict[int, int] = {}
    for file in map(Path, config.files):
        refuse_new_file(file, machine)
        file_system = file.parent.stat().st_dev
        needed[file_system] = needed.get(file_system, 0) + size
        free = machine.free_bytes(file.parent)
        if free < needed[file_system]:
            raise ConfigError(f"{file.parent}: has {free >> 30} GiB free, the swap files there need {needed[file_system] >> 30}")


def _undo_of_what_is_there(config: SwapConfig, machine: Machine) -> list[Command]:
    """Return the undo commands that have something to undo.

    Raises:
        ConfigError: there is nothing, or a file carries no swap signature.
    """
    strange = [file for file in config.swap_files() if file.exists() and not is_swap_file(file)]
    if strange:
        raise ConfigError(f"{strange[0]}: carries no swap signature, so it is not removed")
    active = machine.active_swaps()
    mounted = {mount.place for mount in machine.mounts()}
    there = {
        "swapoff": {str(file) for file in config.swap_files() if str(file.resolve()) in active},
        "rm": {str(file) for file in config.swap_files() if file.exists()},
        "umount": {str(config.mount_of(device)) for device in config.devices} & mounted,
        "rmdir": {str(config.mount_of(device)) for device in config.devices if config.mount_of(device).is_dir()},
    }
    commands = [command for command in undo_commands(config) if command[-1] in there[command[0]]]
    if not commands:
        raise ConfigError(f"{config.swap_files()[0]}: no such file; there is nothing to undo")
    return commands


def _print(title: str, commands: list[Command]) -> None:
    sys.stdout.write("\n".join([title, *map(shlex.join, commands)]) + "\n")
    sys.stdout.flush()
