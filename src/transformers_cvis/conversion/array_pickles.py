"""Pickles of numbers in numpy arrays, such as the `.pkl` files of Detectron2's model zoo, read without running them.

A pickle is a program: it may name any callable of the installed packages and call it. Here nothing that it names is
looked up. The few names with which numpy describes an array stand for the classes of this module, which note its shape,
type and bytes; any other name ends the reading.
"""

import math
import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class ForbiddenNameError(pickle.UnpicklingError):
    """The pickle asks for something that no array of numbers needs.

    Attributes:
        name: what it asks for, such as "os.system".
    """

    def __init__(self, name: str):
        super().__init__(f"the pickle asks for {name}")
        self.name = name


class PickledType:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if code not in NUMBERS:
            raise ForbiddenNameError(f"a numpy array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        self.dtype = self.dtype.newbyteorder(byte_order if byte_order in ("<", ">") else "=")


class PickledArray:
    """Stands for `numpy.ndarray`.

    Attributes:
        array (`np.ndarray`): numbers of the machine's byte order, rows first; None where the pickle gives no content.
    """

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, columns_first, data = state
        self.fill(data, kind, shape, "F" if columns_first else "C")

    def fill(self, data: bytes | bytearray | str, kind: PickledType, shape: tuple, order: str) -> "PickledArray":
        if isinstance(data, str):  # the bytes of Python 2
            data = data.encode("latin1")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} comes with {len(data)} bytes")
        array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
        self.array = array.astype(kind.dtype.newbyteorder("="), order="C")
        return self


def _new_array(subtype: type, shape: tuple, type_code: bytes) -> PickledArray:
    return PickledArray()


def _array_of_buffer(data: bytearray, kind: PickledType, shape: tuple, order: str, axes: None = None) -> PickledArray:
    return PickledArray().fill(data, kind, shape, order)


def _scalar(kind: PickledType, data: bytes) -> PickledArray:
    return PickledArray().fill(data, kind, (), "C")


def _encoded_bytes(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, with which old protocols write bytes."""
    if encoding != "latin1":
        raise ForbiddenNameError(f"the codec {encoding!r}")
    return text.encode("latin1")


STAND_INS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded_bytes,
    ("numpy", "dtype"): PickledType,
    ("numpy", "ndarray"): PickledArray,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # numpy 1 and numpy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _new_array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_of_buffer),
        )
    },
}


class ArrayUnpickler(pickle.Unpickler):
    """Gives dicts, lists, tuples, text, numbers and `PickledArray`s; anything else is a `ForbiddenNameError`."""

    def find_class(self, module: str, name: str):
        if (module, name) not in STAND_INS:
            raise ForbiddenNameError(f"{module}.{name}")
        return STAND_INS[module, name]

    def persistent_load(self, reference):
        raise ForbiddenNameError("an object outside of the file (a persistent id)")


def load_array_pickle(file: BinaryIO) -> Any:
    """What the pickle holds, with a [`PickledArray`] for every array; text of Python 2 is read as latin1.

    Raises:
        ForbiddenNameError: it asks for anything else than arrays of numbers; nothing has run.
        Exception: of any other kind, since the file is damaged or no pickle.
    """
    return ArrayUnpickler(file, encoding="latin1").load()
