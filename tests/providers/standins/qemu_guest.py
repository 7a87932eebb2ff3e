"""Makes the small Linux guest of the qemu tests: a bootable disk with the stand-in of OSWorld's server on port 5000.

    python tests/providers/standins/qemu_guest.py     makes it, unless it is there, and prints its path

Needs root, debootstrap with a mirror of Debian's, mkfs.ext4 and qemu-img. It is kept in .cache/tests under a name that
says what it is made of.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVER = Path(__file__).parent / "osworld_guest.py"
SCREEN = (640, 480)
PROGRAMS = ("debootstrap", "mkfs.ext4", "qemu-img")

PACKAGES = "python3,python3-pil,iproute2,linux-image-cloud-amd64,grub-pc-bin,grub-common"
SUITE = ("bookworm", "http://deb.debian.org/debian")
SECTOR = 512
START = 2048  # the partition's first sector; GRUB lies before it
SIZE_MB = 900

INIT = f"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -o remount,rw /
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
export PYTHONDONTWRITEBYTECODE=1 HOME=/home/user PATH=/usr/bin:/usr/sbin:/bin:/sbin
# as process 1 it would get none of the signals that end it, and the kernel would stop with it
while :; do python3 /opt/osworld_guest.py 0.0.0.0 5000 /home/user {SCREEN[0]}x{SCREEN[1]}; done
"""
GRUB = """set root=(hd0,msdos1)
linux /vmlinuz root=LABEL=arpo-guest ro quiet console=ttyS0 panic=-1 net.ifnames=0 init=/sbin/arpo-init
initrd /initrd.img
boot
"""


class NoGuest(Exception):  # noqa: N818 - what there is
    """It is not there and cannot be made; the message says why."""


def guest_path() -> Path:
    """Where the disk is, or will be."""
    made_of = f"{PACKAGES} {SUITE} {START} {SIZE_MB} {INIT} {GRUB}".encode() + SERVER.read_bytes()
    return ROOT / ".cache" / "tests" / f"qemu-guest-{hashlib.sha256(made_of).hexdigest()[:16]}.qcow2"


def guest() -> Path:
    """The disk, made if it is not there: a minute or more, most of it in debootstrap. Raises NoGuest."""
    path = guest_path()
    if not path.exists():
        absent = [program for program in PROGRAMS if shutil.which(program) is None]
        if absent:
            raise NoGuest(f"{', '.join(absent)} not installed (scripts/setup.sh installs them)")
        if os.geteuid() != 0:
            raise NoGuest("making the guest's disk with debootstrap needs root")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="qemu-guest-") as folder:
            make(Path(folder)).rename(path)
    return path


def make(folder: Path) -> Path:
    root, raw, disk = folder / "root", folder / "disk.raw", folder / "disk.qcow2"
    try:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE[0], root, SUITE[1])
    except AssertionError as error:
        raise NoGuest(str(error)) from error
    for path, text in ((root / "sbin/arpo-init", INIT), (root / "tmp/grub.cfg", GRUB)):
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(SERVER, root / "opt/osworld_guest.py")
    (root / "home/user").mkdir()
    run(
        "chroot", root, "grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/", "-c", "/tmp/grub.cfg",
        "-o", "/tmp/core.img", "biosdisk", "part_msdos", "ext2", "linux", "normal",
    )  # fmt: skip
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    core = (root / "tmp/core.img").read_bytes()
    assert len(core) < (START - 1) * SECTOR
    for useless in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "tmp"):
        shutil.rmtree(root / useless)
        (root / useless).mkdir()

    with raw.open("wb") as file:
        file.truncate(SIZE_MB << 20)
        file.write(boot[:446] + partition_table())
        file.write(core)
    offset = f"offset={START * SECTOR}"
    blocks = ((SIZE_MB << 20) - START * SECTOR) // 4096
    run("mkfs.ext4", "-q", "-b", "4096", "-L", "arpo-guest", "-E", offset, "-d", root, raw, str(blocks))
    run("qemu-img", "convert", "-O", "qcow2", "-c", raw, disk)
    return disk


def partition_table() -> bytes:
    """One bootable Linux partition from START to the end."""
    sectors = (SIZE_MB << 20) // SECTOR - START
    entry = b"\x80\xff\xff\xff\x83\xff\xff\xff" + START.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    return entry + bytes(48) + b"\x55\xaa"


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


if __name__ == "__main__":
    print(guest())
