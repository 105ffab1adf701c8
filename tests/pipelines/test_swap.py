"""Swap: exact commands, run only when confirmed, and never over anything that is there. No test formats or mounts a thing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapt.core.errors import ConfigError
from pipelines.command_line.plain_options import parsed
from pipelines.tools.swap import SwapConfig, apply_commands, main, undo_commands
from pipelines.tools.swap_checks import Machine, Mount, content_of, is_swap_file

GIB = 1 << 30


@dataclass
class Pretended(Machine):
    """A machine whose devices are files, and which notes commands instead of running them."""

    devices: set[Path] = field(default_factory=set)
    is_superuser: bool = True
    fails_at: str | None = None
    done: list[list[str]] = field(default_factory=list)
    mounted: list[Mount] = field(default_factory=lambda: [Mount(source="/dev/root", place="/", kind="ext4")])
    swaps: set[str] = field(default_factory=set)
    parts: list[str] = field(default_factory=list)
    said: str | None = None
    busy: bool = False
    capacity: int = 100 * GIB
    free: int = 1 << 50

    def is_root(self) -> bool:
        return self.is_superuser

    def run(self, command: list[str]) -> int:
        self.done.append(command)
        return 3 if command[0] == self.fails_at else 0

    def is_block_device(self, path: Path) -> bool:
        path.stat()
        return path in self.devices

    def is_busy(self, device: Path) -> bool:
        return self.busy

    def size_of(self, path: Path) -> int:
        return self.capacity

    def mounts(self) -> list[Mount]:
        return self.mounted

    def active_swaps(self) -> set[str]:
        return self.swaps

    def parts_and_holders(self, device: Path) -> list[str]:
        return self.parts

    def tools_say(self, device: Path) -> str | None:
        return self.said

    def free_bytes(self, directory: Path) -> int:
        return self.free


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Return a file of zeros that stands for a device."""
    place = tmp_path / "nvme7n1"
    place.write_bytes(bytes(4 << 20))
    return place


def config(action: str, *words: str) -> SwapConfig:
    return parsed(SwapConfig, [action, "size_gib=2", *words], "action")


def test_the_commands_of_a_device_are_those_of_the_article() -> None:
    made = config("plan", "devices=[/dev/nvme1n1]", "priority=5")
    assert [" ".join(command) for command in apply_commands(made)] == [
        "mkfs.ext4 /dev/nvme1n1",
        "mkdir -p /mnt/swap-nvme1n1",
        "mount /dev/nvme1n1 /mnt/swap-nvme1n1",
        "dd if=/dev/zero of=/mnt/swap-nvme1n1/swapfile bs=1M count=2048 conv=excl,fsync",
        "chmod 600 /mnt/swap-nvme1n1/swapfile",
        "mkswap /mnt/swap-nvme1n1/swapfile",
        "swapon -p 5 /mnt/swap-nvme1n1/swapfile",
    ]
    assert [" ".join(command) for command in undo_commands(made)] == [
        "swapoff /mnt/swap-nvme1n1/swapfile",
        "rm /mnt/swap-nvme1n1/swapfile",
        "umount /mnt/swap-nvme1n1",
        "rmdir /mnt/swap-nvme1n1",
    ]


def test_a_file_may_be_filled_at_once() -> None:
    made = config("plan", "files=[/big/swap]", "fill=fallocate")
    assert apply_commands(made)[0] == ["fallocate", "-l", "2GiB", "/big/swap"]
    assert all("mkfs" not in command[0] for command in apply_commands(made))


def test_a_plan_shows_both_ways_and_changes_nothing(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Pretended(devices={device})
    before = device.read_bytes()
    words = [f"devices=[{device}]", f"files=[{tmp_path}/my swap]", f"mount_root={tmp_path}", "confirm=true"]
    assert main(config("plan", *words), machine) == 0
    out = capsys.readouterr().out
    assert f"mkfs.ext4 {device}" in out
    assert f"swapon -p 10 '{tmp_path}/my swap'" in out
    assert f"swapoff '{tmp_path}/my swap'" in out
    assert machine.done == []
    assert device.read_bytes() == before
    assert sorted(place.name for place in tmp_path.iterdir()) == ["nvme7n1"]


def test_apply_runs_what_plan_shows_and_only_when_confirmed(device: Path, tmp_path: Path) -> None:
    words = [f"devices=[{device}]", f"mount_root={tmp_path}"]
    machine = Pretended(devices={device})
    with pytest.raises(ConfigError, match="nothing was run.*confirm=true"):
        main(config("apply", *words), machine)
    with pytest.raises(ConfigError, match="nothing was run.*need root"):
        main(config("apply", *words, "confirm=true"), Pretended(devices={device}, is_superuser=False))
    assert machine.done == []
    assert main(config("apply", *words, "confirm=true"), machine) == 0
    assert machine.done == apply_commands(config("plan", *words))


def test_a_failed_command_stops_the_rest(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Pretended(devices={device}, fails_at="mount")
    with pytest.raises(ConfigError, match="`mount .*` failed with code 3; 2 of 7 commands were done before it"):
        main(config("apply", f"devices=[{device}]", f"mount_root={tmp_path}", "confirm=true"), machine)
    assert [command[0] for command in machine.done] == ["mkfs.ext4", "mkdir", "mount"]
    assert "to undo what was done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"said": "TYPE=ext4"}, "holds something already .TYPE=ext4.; it is never formatted"),
        ({"parts": ["nvme7n1p1"]}, "carries nvme7n1p1"),
        ({"busy": True}, "is in use"),
        ({"capacity": 2 * GIB}, "too few"),
    ],
)
@pytest.mark.parametrize("action", ["plan", "apply"])
def test_a_device_that_holds_or_serves_anything_is_refused(
    machine: dict[str, object], words: str, action: str, device: Path, tmp_path: Path
) -> None:
    pretended = Pretended(devices={device}, **machine)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        main(config(action, f"devices=[{device}]", f"mount_root={tmp_path}", "confirm=true"), pretended)
    assert pretended.done == []


def test_a_mounted_device_is_refused_by_any_of_its_names(device: Path, tmp_path: Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(device)
    for source, target in ((device, link), (link, device)):
        mounted = [Mount(source=str(source), place="/data", kind="ext4")]
        with pytest.raises(ConfigError, match="is mounted at /data"):
            main(config("plan", f"devices=[{target}]"), Pretended(devices={device}, mounted=mounted))
    with pytest.raises(ConfigError, match="in use as swap"):
        main(config("plan", f"devices=[{link}]"), Pretended(devices={device}, swaps={str(device)}))


@pytest.mark.parametrize(
    ("offset", "mark", "words"),
    [
        (1080, b"\x53\xef", "ext4"),
        (0, b"XFSB", "xfs"),
        (65600, b"_BHRfS_M", "btrfs"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        (512, b"EFI PART", "GPT"),
        (510, b"\x55\xaa", "MBR"),
        (4086, b"SWAPSPACE2", "swap"),
        (700_000, b"x", "unknown kind in its first MiB"),
        ((4 << 20) - 1, b"x", "unknown kind in its last MiB"),
    ],
)
def test_a_signature_is_read_from_the_bytes_where_the_tools_say_nothing(offset: int, mark: bytes, words: str, device: Path) -> None:
    with device.open("r+b") as stream:
        stream.seek(offset)
        stream.write(mark)
    with pytest.raises(ConfigError, match=f"{words}.*never formatted"):
        main(config("apply", f"devices=[{device}]", "confirm=true"), Pretended(devices={device}, capacity=4 << 20))


def test_a_real_file_system_is_recognised(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    assert content_of(image, 8 << 20) is None
    maker = shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"
    if not Path(maker).exists():
        pytest.skip("no mkfs.ext4 here")
    subprocess.run([maker, "-q", "-F", str(image)], check=True, capture_output=True)
    assert content_of(image, 8 << 20) == "ext2, ext3 or ext4"
    assert Machine().tools_say(image) is None or "ext4" in str(Machine().tools_say(image))


def test_an_unreadable_device_is_refused(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> int:
        raise PermissionError(13, "Permission denied")

    machine = Pretended(devices={device})
    monkeypatch.setattr(machine, "size_of", denied)
    with pytest.raises(ConfigError, match="cannot be read .Permission denied., so nobody knows"):
        main(config("plan", f"devices=[{device}]"), machine)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["devices=[/dev/nowhere_at_all]"], "no such device"),
        (["devices=[{tmp}/plain]"], "no block device"),
        (["files=[{tmp}/plain]"], "exists already"),
        (["files=[{tmp}/none/swap]"], "no such directory"),
        (["files=[{tmp}/swap,{tmp}/swap]"], "given twice"),
        (["files=[swap]"], "whole path"),
        ([], "no target"),
        (["files=[{tmp}/swap]", "priority=40000"], "priority"),
        (["files=[{tmp}/swap]", "prio=3"], "unknown key .did you mean 'priority'"),
        (["files=[{tmp}/swap]", "fill=cp"], "'cp' is not one of dd, fallocate"),
        (["files=[{tmp}/swap]", "confirm"], "expected key=value"),
        (["files=[{tmp}/swap]", "size_gib=3"], "given twice"),
    ],
)
def test_a_target_or_key_that_cannot_be_is_refused(words: list[str], match: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("mine", encoding="utf-8")
    machine = Pretended()
    with pytest.raises(ConfigError, match=match):
        main(config("apply", "confirm=true", *(word.replace("{tmp}", str(tmp_path)) for word in words)), machine)
    assert machine.done == []
    assert (tmp_path / "plain").read_text(encoding="utf-8") == "mine"


def test_files_need_room_together_and_a_file_system_that_can_hold_swap(tmp_path: Path) -> None:
    words = [f"files=[{tmp_path}/a,{tmp_path}/b]"]
    with pytest.raises(ConfigError, match="3 GiB free, the swap files there need 4"):
        main(config("plan", *words), Pretended(free=3 * GIB))
    mounted = [Mount(source="/dev/root", place="/", kind="ext4"), Mount(source="tmpfs", place=str(tmp_path), kind="tmpfs")]
    with pytest.raises(ConfigError, match="on tmpfs, which cannot hold a swap file"):
        main(config("plan", *words), Pretended(mounted=mounted))


def swap_file(place: Path) -> Path:
    place.write_bytes(bytes(4086) + b"SWAPSPACE2" + bytes(4096))
    return place


def test_undo_removes_swap_files_and_nothing_else(tmp_path: Path) -> None:
    active, idle, other = swap_file(tmp_path / "a"), swap_file(tmp_path / "b"), tmp_path / "c"
    other.write_text("not swap", encoding="utf-8")
    assert is_swap_file(active)
    machine = Pretended(swaps={str(active)})
    with pytest.raises(ConfigError, match="c: carries no swap signature, so it is not removed"):
        main(config("undo", f"files=[{active},{other}]", "confirm=true"), machine)
    with pytest.raises(ConfigError, match="nothing was run"):
        main(config("undo", f"files=[{active}]"), machine)
    with pytest.raises(ConfigError, match="nothing to undo"):
        main(config("undo", f"files=[{tmp_path}/none]", "confirm=true"), machine)
    assert machine.done == []
    assert main(config("undo", f"files=[{active},{idle},{tmp_path}/none]", "confirm=true"), machine) == 0
    assert machine.done == [["swapoff", str(active)], ["rm", str(active)], ["rm", str(idle)]]


def test_undo_unmounts_what_apply_mounted(device: Path, tmp_path: Path) -> None:
    mount = tmp_path / "swap-nvme7n1"
    mount.mkdir()
    machine = Pretended(devices={device}, mounted=[Mount(source=str(device), place=str(mount), kind="ext4")])
    words = [f"devices=[{device}]", f"mount_root={tmp_path}", "confirm=true"]
    assert main(config("undo", *words), machine) == 0
    assert [command[0] for command in machine.done] == ["umount", "rmdir"]


def test_the_real_machine_knows_what_is_mounted() -> None:
    machine = Machine()
    assert any(mount.place == "/" for mount in machine.mounts())
    assert isinstance(machine.active_swaps(), set)
    for mount in machine.mounts():
        if mount.source.startswith("/dev/") and Path(mount.source).is_block_device():
            with pytest.raises(ConfigError, match="is mounted|carries|no such"):
                main(config("plan", f"devices=[{mount.source}]"), machine)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan", "files=[{tmp}/swap]", "size_gib=1"], 0, "mkswap"),
        (["action=plan", "files=[{tmp}/swap]", "size_gib=1"], 0, "mkswap"),
        (["apply", "files=[{tmp}/swap]", "size_gib=1"], 2, "confirm=true"),
        (["destroy", "files=[{tmp}/swap]", "size_gib=1"], 2, "plan, apply, undo"),
        (["--help"], 0, "There is no key that"),
    ],
)
def test_the_command_line(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import swap

    place = tmp_path / "place"
    place.mkdir()
    mounted = [Mount(source="/dev/root", place="/", kind="ext4")]
    monkeypatch.setattr(Machine, "mounts", lambda self: mounted)
    monkeypatch.setattr(sys, "argv", ["pipelines.swap", *(word.replace("{tmp}", str(place)) for word in words)])
    assert run_plainly(SwapConfig, main, swap.__doc__ or "", first_word="action") == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert len(captured.err.splitlines()) == (1 if code else 0)
    assert not list(place.iterdir())
