# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their name only when they are complete.

Only this module makes temporary names, renames files, flushes them to the disk, and hashes them. The temporary name of
an unfinished file or folder ends in `TEMPORARY_SUFFIX`, which marks the remains of a killed process.
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
    """Open a binary file for writing. It becomes `path` if the block succeeds, and is deleted if it fails.

    Args:
        path: path of the file. An existing file is replaced at once: readers get the old content or the new one.

    Yields:
        The open file.

    Raises:
        OSError: the file cannot be written (no such folder, no permission, disk full, ...). The message names it.
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
    """Make a folder to write into. It becomes `path` if the block succeeds, and is deleted if it fails.

    Args:
        path: path of the folder, which must not exist or be empty. Missing parents are made.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
        OSError: the folder cannot be written. The message names the folder that cannot be written into.
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
    """Make a folder to write files into. They are moved into `folder` if the block succeeds.

    Files of the same name are replaced, all others stay. If the block fails, `folder` stays as it was.

    Args:
        folder: folder that receives the files; made if it does not exist.
        last: name of the file that is moved after all others. If it exists, the others are complete.

    Yields:
        The temporary folder.
    """
    folder = Path(folder)
    temporary = incomplete_path(folder / ".files")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def set_aside(paths: Iterable[Path], folder: Path) -> Iterator[None]:
    """Move files and folders aside. They are deleted if the block succeeds, and restored if it fails.

    Args:
        paths: files and folders to move, all directly below `folder`.
        folder: folder in which they are kept meanwhile, in a folder of their own.
    """
    paths = list(paths)
    if not paths:
        yield
        return
    # The name must not end in `TEMPORARY_SUFFIX`: the files are complete, and nothing may delete them as remains.
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
    """Make a folder that is deleted when the block ends, for files that will be copied or uploaded."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def incomplete_path(path: Path) -> Path:
    """Return the temporary path of the folder `path`, until [`finish_folder`] renames it.

    Use it instead of [`complete_folder`] if several processes write into one folder.
    """
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def finish_folder(path: Path) -> None:
    """Flush the files in `incomplete_path(path)` to the disk, then rename that folder to `path`.

    Raises:
        OSError: `path` exists and is not an empty folder, or the disk reports an error.
    """
    for file in incomplete_path(path).iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    os.replace(incomplete_path(path), path)


def discard_folder(path: Path) -> None:
    """Delete a folder. It is renamed first, so a folder under its own name is always complete."""
    doomed = incomplete_path(path)
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_incomplete(folder: Path) -> None:
    """Delete the folders directly below `folder` that an interrupted process left unfinished."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Write JSON in UTF-8, through [`complete_file`].

    Args:
        path: path of the file; an existing file is replaced.
        content: values of types that JSON has.
        indent: spaces per level, for files that people read. None writes one line.

    Raises:
        OSError: the file cannot be written. The message names it.
        TypeError: `content` holds a type that JSON does not have. Nothing is written.
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
