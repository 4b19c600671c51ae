# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their name only when they are complete.

This is the only place in the package that makes temporary names, renames, flushes to the disk, and hashes files. Every
temporary name of something that is being written ends in `TEMPORARY_SUFFIX`, so what a killed process left is known.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".incomplete"


@contextmanager
def complete_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file for writing that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: the file. One that exists is replaced; readers see the old file or the new one, never half of one.

    Raises:
        OSError: the file cannot be written (no such folder, no permission, disk full ...); the message names it.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
        os.close(handle)
        with open(temporary, "w+b") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner only
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or os.strerror(error.errno)
            raise OSError(error.errno, f"Cannot write {str(path)!r}: {reason}") from error
        raise


@contextmanager
def complete_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Make a folder to write into that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: the folder; it must not exist, or be empty. Its parents are made.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
        OSError: it cannot be written; the message names the folder that refuses.
    """
    path = Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder; give a new folder or remove it first.")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=existing))
    except OSError as error:
        raise OSError(f"Cannot write into the folder {existing}: {error.strerror}.") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def replace_files(folder: str | os.PathLike, last: str) -> Iterator[Path]:
    """Make a folder to write files into, which are moved into `folder` when the block ends well.

    Files of the same name are replaced, all others stay. If the block fails, `folder` stays as it was.

    Args:
        folder: receives the files; it is made if it does not exist.
        last: the name of the file that is moved after all others. Where it is, the others are complete.
    """
    folder = Path(folder)
    temporary = incomplete_path(folder / ".files")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def set_aside(paths: Iterable[Path], folder: Path) -> Iterator[None]:
    """Move files and folders out of the way. They are deleted when the block ends well, and back when it does not.

    Args:
        paths: what is moved; all names differ, and all lie in `folder`.
        folder: where they are kept meanwhile, in a folder of their own.
    """
    paths = list(paths)
    if not paths:
        yield
        return
    # What it holds is complete, so it must not end in `TEMPORARY_SUFFIX`: nobody may clear it away.
    aside = Path(tempfile.mkdtemp(prefix=".former-", dir=folder))
    try:
        for path in paths:
            path.rename(aside / path.name)
        yield
    except BaseException:
        for path in aside.iterdir():
            path.rename(folder / path.name)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is deleted when the block ends, for files that are on their way elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def incomplete_path(path: Path) -> Path:
    """Return where the folder `path` is written before [`finish_folder`] renames it.

    Use it in place of [`complete_folder`] where several processes write into one folder.
    """
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def finish_folder(path: Path) -> None:
    """Rename the folder that was written to `incomplete_path(path)`, after its files have reached the disk.

    Raises:
        OSError: `path` exists and is not an empty folder, or the disk refuses.
    """
    for file in incomplete_path(path).iterdir():  # contents reach the disk before the name does
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    os.replace(incomplete_path(path), path)


def discard_folder(path: Path) -> None:
    """Delete a folder; it loses its name before its first file goes."""
    doomed = incomplete_path(path)
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_incomplete(folder: Path) -> None:
    """Delete the folders directly below `folder` that an interrupted process left unfinished."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Write JSON in UTF-8, as [`complete_file`] does.

    Args:
        path: the file; one that exists is replaced.
        content: the values, all of types that JSON has.
        indent: spaces per level, for files that people read; None writes one line.

    Raises:
        OSError: the file cannot be written; the message names it.
        TypeError: `content` holds a type that JSON does not have; nothing is written.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    with complete_file(path) as file:
        file.write(f"{text}\n".encode())


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
