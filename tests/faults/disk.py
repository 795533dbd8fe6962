"""A disk that is full at some point of a run: one line with numbers, and nothing is lost."""

from __future__ import annotations

import random
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .rows import Row
from .runs import End, lab_in, start, wait

SAID = re.compile(r"brim: .*\(at least [\d,]+ bytes needed")
FREE = re.compile(r"bytes needed, [\d,]+ free\)")


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Let runs and reports end on disks of `count` sizes, and on files of as many.

    Disks are file systems in memory, for which one must be root; without that there are the files.
    """
    lab, generator = lab_in(directory), random.Random(seed)
    files = Row("files as large as is allowed")
    largest = max(path.stat().st_size for path in lab.whole.rglob("*"))
    for size in _sizes(generator, count, largest):
        out = lab.fresh("limited")
        end = wait(start(lab.train(out), lab.log, _limit(size)))
        _count(files, size, _wrong(end, SAID) or lab.finish(out), end)
    mount = directory / "disk"
    if not _can_mount(mount):
        return [files]
    disks, reports = Row("a full disk, while training"), Row("a full disk, while reporting")
    for size in _sizes(generator, count, _used(lab.whole)):
        with _disk(mount, size):
            end = wait(start(lab.train(mount / "run"), lab.log))
            fault = _wrong(end, FREE)
            _grow(mount)
            _count(disks, size, fault or lab.finish(mount / "run"), end)
    if count < 4:
        return [files, disks]
    report = ["report", str(lab.whole), "--out"]
    wait(start([*report, str(lab.fresh("report"))], lab.log))
    for size in _sizes(generator, count // 4, _used(lab.directory / "report")):
        with _disk(mount, size):
            end = wait(start([*report, str(mount / "report")], lab.log))
            fault = _wrong(end, FREE)
            _grow(mount)
            again = wait(start([*report, str(mount / "report")], lab.log))
            _count(reports, size, fault or (again.output[-300:] if again.code else None), end)
    return [files, disks, reports]


def _sizes(generator: random.Random, count: int, largest: int) -> list[int]:
    """Sizes of which each is as likely as one of half of it is."""
    smallest = 4096
    ratio = largest / smallest
    return [int(smallest * ratio ** generator.uniform(0, 1)) for _ in range(count)]


def _count(row: Row, size: int, fault: str | None, end: End) -> None:
    row.count(
        fault and f"{size} bytes: {fault}",
        silent="differs" in (fault or ""),
        traceback=end.traceback,
    )


def _wrong(end: End, said: re.Pattern[str]) -> str | None:
    """What is wrong with the words of a process that could not write, or could."""
    if end.code == 0:
        return None if not end.errors else f"ends well, but says {end.errors}"
    if end.code != 2 or end.traceback or len(end.errors) != 1:
        return f"ends by {end.code}: {end.output[-600:]}"
    return None if said.search(end.errors[0]) else f"says {end.errors[0]}"


def _limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 + 4096 for path in folder.rglob("*"))


def _mount(mount: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(mount)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _can_mount(mount: Path) -> bool:
    mount.mkdir(exist_ok=True)
    if not _mount(mount, "size=64k"):
        return False
    subprocess.run(["umount", str(mount)], check=True)
    return True


@contextmanager
def _disk(mount: Path, size: int) -> Iterator[None]:
    if not _mount(mount, f"size={size}"):
        raise OSError(f"{mount}: cannot be mounted any more")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def _grow(mount: Path) -> None:
    if not _mount(mount, "remount,size=256m"):
        raise OSError(f"{mount}: cannot be made larger")
