"""Files appear under their name only when they are complete."""

import os
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
