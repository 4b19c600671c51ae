"""Files and folders appear under their name only when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def complete_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file for writing that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        OSError: the file cannot be written (no such folder, no permission, disk full ...); the message names it.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
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
    """A folder to write into that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        FileExistsError: `path` is there already, and is no empty folder.
        OSError: it cannot be written; the message names the folder that refuses.
    """
    path = Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder; give a new folder or remove it first.")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=existing))
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
