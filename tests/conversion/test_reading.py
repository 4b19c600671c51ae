# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files that are read, and files that are refused without running any of their content."""

import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transformers_cvis.conversion import convert_checkpoint, read_checkpoint

ARRAYS = {
    "float": np.arange(6, dtype="f4").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    "big-endian": np.arange(6, dtype=">f4").reshape(3, 2),
    "half": np.arange(2, dtype="f2"),
    "index": np.arange(4).reshape(2, 2),
    "flag": np.array([True, False]),
    "scalar": np.float32(2.5),
}


def assert_holds_arrays(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(tensors[name].numpy(), array)
        assert tensors[name].shape == array.shape
        assert tensors[name].numpy().dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_model_zoo_pickle_of_any_protocol_is_read(tmp_path, protocol):
    content = {"model": ARRAYS, "__author__": "Zoo", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(tmp_path / "model.pkl")
    assert_holds_arrays(checkpoint.tensors)
    assert checkpoint.left_out == ["__author__", "matching_heuristics"]


def test_pickle_of_numpy_1_is_read(tmp_path):
    content = pickle.dumps(ARRAYS, protocol=2)
    assert content.count(b"numpy._core.multiarray")
    (tmp_path / "model.pkl").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_holds_arrays(read_checkpoint(tmp_path / "model.pkl").tensors)


def test_pickle_of_python_2_is_read(tmp_path):
    """Python 2 wrote the bytes of an array as text."""
    array = np.array([-1.5, 3.25], dtype="<f4")
    text = repr(array.tobytes()).removeprefix("b")
    kind = "cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    new = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    (tmp_path / "old.pkl").write_text(f"(dS'weight'\n{new}(I1\n(I2\nt{kind}I00\nS{text}\ntbs.")
    assert torch.equal(read_checkpoint(tmp_path / "old.pkl").tensors["weight"], torch.from_numpy(array))


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_file_of_any_name_is_read(tmp_path, new_format):
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.float16)}
    for name in ("model.pth", "model.pkl", "model"):
        content = {"model": tensors, "iteration": 7, "optimizer": {"state": {}}}
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new_format)
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.left_out == ["iteration", "optimizer"]
        assert all(torch.equal(checkpoint.tensors[key], tensors[key]) for key in tensors)


def test_safetensors_and_plain_state_dict_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "model.pth")
    assert torch.equal(read_checkpoint(tmp_path / "model.safetensors").tensors["a"], torch.ones(2))
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert torch.equal(checkpoint.tensors["a"], torch.ones(2))
    assert checkpoint.left_out == ["epoch"]


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class External(pickle.Pickler):
    """A pickler that writes `Calls` as references to objects outside the file."""

    def persistent_id(self, value: Any) -> str | None:
        return "elsewhere" if isinstance(value, Calls) else None


def calls_by_persistent_id(harm: str) -> bytes:
    file = io.BytesIO()
    External(file).dump({"model": Calls(print)})
    return file.getvalue()


def storage_that_loads_a_pickle(harm: str) -> bytes:
    """Imitate a tensor in a plain pickle: torch loads the bytes of its storage with `torch.load`, which unpickles."""
    inner = io.BytesIO()
    torch.save(Calls(os.system, harm), inner)
    return pickle.dumps({"model": Calls(torch.storage._load_from_bytes, inner.getvalue())})


def array_type_of_objects(harm: str) -> bytes:
    """Declare a type of numbers, whose state makes it a type of objects."""
    array = pickle.dumps({"model": {"a": np.arange(2, dtype="f4")}}, protocol=2)
    assert array.count(b"f4") == 1
    return array.replace(b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00O8")


# What a pickle asks for, and a function that makes the pickle, which would run the shell command `harm`.
HARMFUL = {
    "shell": ("posix.system", lambda harm: pickle.dumps({"model": Calls(os.system, harm)})),
    "shell, as text": ("os.system", lambda harm: f"cos\nsystem\n(S'{harm}'\ntR.".encode()),
    "shell, as instance": ("os.system", lambda harm: f"(S'{harm}'\nios\nsystem\n.".encode()),
    "eval": ("eval", lambda harm: pickle.dumps({"model": Calls(eval, f"__import__('os').system({harm!r})")})),
    "getattr": ("getattr", lambda harm: pickle.dumps({"model": Calls(getattr, harm, "upper")})),
    "numpy function": (
        "numpy.testing._private.utils.runstring",
        lambda harm: b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n(dtR.",
    ),
    "method of an array": ("numpy.ndarray.tofile", lambda harm: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."),
    "array of objects": (
        "type 'O8'",
        lambda harm: pickle.dumps({"model": {"a": np.array([Calls(os.system, harm)], dtype=object)}}),
    ),
    "type of objects": ("type 'O8'", array_type_of_objects),
    "array of text": ("type 'U1'", lambda harm: pickle.dumps({"model": {"a": np.array(["x"])}})),
    "torch storage": ("torch.storage._load_from_bytes", storage_that_loads_a_pickle),
    "torch tensor": (
        "torch._utils._rebuild_tensor_v2",
        lambda harm: pickle.dumps({"model": {"a": torch.ones(1)}}),
    ),
    "persistent id": ("a persistent id", calls_by_persistent_id),
    "codec": ("the codec 'rot13'", lambda harm: b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR."),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, kind):
    found, make = HARMFUL[kind]
    path, trace = tmp_path / "model.pkl", tmp_path / "trace"
    path.write_bytes(make(f"touch {trace}"))
    with pytest.raises(ValueError, match="was not read") as refusal:
        convert_checkpoint(path, tmp_path / "out", "mask2former")
    message = str(refusal.value)
    assert message.startswith(f"{path} was not read: it asks for ")
    assert found in message
    assert "Nothing in it has run" in message
    assert "save the state dict alone with `torch.save`" in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pkl"]


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("harm", [lambda harm: Calls(os.system, harm), lambda harm: torch.nn.Linear(2, 2)])
def test_torch_file_that_asks_for_more_than_tensors_is_refused(tmp_path, new_format, harm):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    content = {"model": {"a": torch.ones(1)}, "hook": harm(f"touch {trace}")}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"asks for (posix.system|torch.nn.modules.linear.Linear), which") as refusal:
        read_checkpoint(path)
    assert "weights_only" not in str(refusal.value)
    assert not trace.exists()


def test_harmful_pickles_run_their_command_without_this_reader(tmp_path):
    """Show that the command leaves a trace when `pickle` or `torch.load` reads the file."""
    for kind in ("shell", "shell, as text", "eval", "array of objects", "torch storage"):
        trace = tmp_path / kind.replace(" ", "-").replace(",", "")
        pickle.loads(HARMFUL[kind][1](f"touch {trace}"))
        assert trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Google Drive</title>", "is not a checkpoint: it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1", "is not a checkpoint: it begins with b'version https://git"),
        (bytes(range(129, 193)), "is not a checkpoint: it begins with"),
        (pickle.dumps({"model": ARRAYS})[:-40], "is a pickle file that is truncated or damaged"),
        (b"PK\x03\x04" + bytes(200), "is a torch file that is truncated or damaged"),
        (pickle.dumps([1, 2]), "holds no state dict, neither as its content nor under 'model'"),
        (pickle.dumps({"model": 3}), "holds no state dict"),
        (pickle.dumps({"state_dict": ARRAYS}), "holds no tensors, .*: it holds state_dict"),
        (pickle.dumps({"model": {}}), "holds no tensors, .*: it holds nothing"),
    ],
)
def test_file_without_tensors_is_an_error(tmp_path, content, message):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.pth {message}"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_torch_file_is_an_error(tmp_path, new_format, share):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(500)}}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is a torch file that is truncated or damaged \(.+\): download it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("num_bytes", range(1, len(b"torch\nFloatStorage\n")))
def test_torch_file_truncated_within_a_name_is_damaged_not_refused(tmp_path, num_bytes):
    """Half a name is not an allowed name, but the file is not malicious."""
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(500)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"torch\nFloatStorage\n") + num_bytes])
    with pytest.raises(ValueError, match=r"is a torch file that is truncated or damaged \(.+\): download it again"):
        read_checkpoint(path)


def test_absent_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Checkpoint .*absent.pth' not found"):
        read_checkpoint(tmp_path / "absent.pth")


def test_truncated_safetensors_file_is_an_error(tmp_path):
    save_file({"a": torch.ones(500)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:900])
    with pytest.raises(ValueError, match="is a safetensors file that is truncated or damaged"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_array_with_too_few_bytes_is_an_error(tmp_path):
    content = pickle.dumps({"model": {"a": np.zeros(4, dtype="f4")}}, protocol=2)
    (tmp_path / "model.pkl").write_bytes(content.replace(b"K\x04\x85", b"K\x09\x85"))
    with pytest.raises(ValueError, match=r"an array of shape \(9,\) comes with 16 bytes"):
        read_checkpoint(tmp_path / "model.pkl")
