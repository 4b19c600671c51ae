# SPDX-License-Identifier: Apache-2.0
"""Read pickles of numpy arrays, such as the `.pkl` files of Detectron2's model zoo, without running them.

A pickle is a program: it can name any callable of the installed packages and call it. This module looks up none of
these names. The few names with which numpy describes an array stand for classes of this module, which record the shape,
type and bytes of the array; any other name ends the reading.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import numpy as np

NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class ForbiddenNameError(pickle.UnpicklingError):
    """Raised if a pickle asks for something that no array of numbers needs.

    Attributes:
        name: what the pickle asks for, such as "os.system".
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"the pickle asks for {name}")
        self.name = name


class PickledType:
    """Stand-in for `numpy.dtype`.

    Attributes:
        dtype (`np.dtype`): a type of numbers.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in NUMBERS:
            raise ForbiddenNameError(f"a numpy array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set the byte order, the only part of the state that matters for numbers."""
        byte_order = state[1]
        self.dtype = self.dtype.newbyteorder(byte_order if byte_order in ("<", ">") else "=")


class PickledArray:
    """Stand-in for `numpy.ndarray`.

    Attributes:
        array (`np.ndarray`): the numbers, in the byte order of the machine and in row-major order; None if the pickle
            gives no content.
    """

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set the content from numpy's version, shape, type, order and bytes."""
        _, shape, kind, is_column_major, data = state
        self.fill(data, kind, shape, "F" if is_column_major else "C")

    def fill(
        self, data: bytes | bytearray | str, kind: PickledType, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> "PickledArray":
        """Set the content.

        Args:
            data: bytes of the numbers; text that stands for bytes in pickles of Python 2.
            kind: type of the numbers.
            shape: shape of the array.
            order: "C" for row-major, "F" for column-major bytes.

        Returns:
            The array itself.

        Raises:
            UnpicklingError: shape and type need another number of bytes.
        """
        if isinstance(data, str):
            data = data.encode("latin1")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} comes with {len(data)} bytes")
        array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
        self.array = array.astype(kind.dtype.newbyteorder("="), order="C")
        return self


def _new_array(subtype: type, shape: tuple[int, ...], type_code: bytes) -> PickledArray:
    """Stand in for numpy's function that makes an array before its state is set."""
    return PickledArray()


def _array_from_buffer(
    data: bytearray, kind: PickledType, shape: tuple[int, ...], order: Literal["C", "F"], axes: None = None
) -> PickledArray:
    return PickledArray().fill(data, kind, shape, order)


def _scalar(kind: PickledType, data: bytes) -> PickledArray:
    return PickledArray().fill(data, kind, (), "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, with which old pickle protocols write bytes."""
    if encoding != "latin1":
        raise ForbiddenNameError(f"the codec {encoding!r}")
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): PickledType,
    ("numpy", "ndarray"): PickledArray,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # numpy 1 and numpy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _new_array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    },
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler for dicts, lists, tuples, text, numbers and arrays of numbers."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return the stand-in for a name.

        Raises:
            ForbiddenNameError: the name has no stand-in.
        """
        if (module, name) not in STAND_INS:
            raise ForbiddenNameError(f"{module}.{name}")
        return STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse a reference to an object outside the file.

        Raises:
            ForbiddenNameError: always.
        """
        raise ForbiddenNameError("an object outside the file (a persistent id)")


def load_array_pickle(file: BinaryIO) -> Any:
    """Load a pickle without running it.

    Args:
        file: binary file at the start of the pickle. Text of Python 2 is read as latin1.

    Returns:
        The content, with a `PickledArray` for every array.

    Raises:
        ForbiddenNameError: the pickle asks for anything other than arrays of numbers; nothing has run.
        Exception: any other type, if the file is damaged or not a pickle.
    """
    return ArrayUnpickler(file, encoding="latin1").load()
