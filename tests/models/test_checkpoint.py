"""Reading slices of safetensors and .bin checkpoints, and what is said of missing and damaged files."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights import slices
from atb_models.models.weights.checkpoint import open_checkpoint

LAYOUTS = ("single", "sharded", "bin", "bin-sharded")


def some_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"matrix": (12, 10), "vector": (7,), "scalar": (), "empty": (0, 4), "cube": (3, 4, 5), "last": (2, 3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_whole_tensors(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    tensors = some_tensors(dtype)
    tiny.write_weights(tmp_path, tensors, layout)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == set(tensors)
        for name, tensor in tensors.items():
            assert (checkpoint.shape(name), checkpoint.read(name).dtype) == (tuple(tensor.shape), dtype)
            assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.float8_e4m3fn])
def test_numbers_of_a_quantised_checkpoint(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    """Read where they are expected, to the last bit, and refused in a checkpoint of floats."""
    every = torch.arange(256, dtype=torch.uint8).view(16, 16)
    matrix = every.view(torch.int8).to(dtype) if dtype.itemsize > 1 else every.view(dtype)
    others = {"scale": torch.randn(3), "zero": torch.zeros(2, dtype=dtype)}
    tiny.write_weights(tmp_path, {"matrix": matrix} | others, layout)
    with open_checkpoint(tmp_path, quantized=True) as checkpoint:
        assert checkpoint.dtype("matrix") == dtype and checkpoint.dtype("scale") == torch.float32
        for dim, part in (None, matrix), (0, matrix[3:9]), (1, matrix[:, 3:9]):
            read = checkpoint.read("matrix", dim, 3, 9)
            assert read.dtype == dtype and read.shape == part.shape
            assert torch.equal(read.view(torch.uint8), part.contiguous().view(torch.uint8))
    with pytest.raises(CheckpointError, match="tensor (matrix|zero) is .*, but only"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["single", "bin"])
@pytest.mark.parametrize("band_bytes", [1, 50, 1 << 20])  # one row, a few rows, all rows at a time
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float32])
def test_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, band_bytes: int, target_dtype: torch.dtype
) -> None:
    monkeypatch.setattr(slices, "BAND_BYTES", band_bytes)
    tensors = some_tensors()
    tiny.write_weights(tmp_path, tensors, layout)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, dim, start, stop in (
            ("matrix", 0, 3, 9),
            ("matrix", 1, 2, 7),
            ("matrix", 1, 10, 10),
            ("vector", 0, 1, 6),
            ("vector", 0, 4, 4),
            ("cube", 1, 1, 3),
            ("cube", 2, 4, 5),
        ):
            expected = tensors[name].narrow(dim, start, stop - start)
            assert torch.equal(checkpoint.read(name, dim, start, stop), expected)
            target = torch.full(expected.shape, 9.0, dtype=target_dtype)
            checkpoint.read_into(name, dim, start, stop, target)
            assert torch.equal(target, expected.to(target_dtype))


@pytest.mark.parametrize(("dim", "start", "stop"), [(None, 0, 0), (0, 3, 9), (1, 2, 7)])
def test_targets_of_any_layout(tmp_path: Path, dim: int | None, start: int, stop: int) -> None:
    tensors = some_tensors()
    tiny.write_weights(tmp_path, tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        expected = checkpoint.read("matrix", dim, start, stop)
        rows, columns = expected.shape
        wide, transposed = torch.zeros(rows, columns + 3).bfloat16(), torch.zeros(columns, rows).bfloat16()
        checkpoint.read_into("matrix", dim, start, stop, wide[:, 1:-2])
        checkpoint.read_into("matrix", dim, start, stop, transposed.T)
    assert torch.equal(wide[:, 1:-2], expected) and torch.equal(transposed.T, expected)
    assert not wide[:, 0].any() and not wide[:, -2:].any()


def test_rows_are_read_straight_into_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_weights(tmp_path, some_tensors())
    with open_checkpoint(tmp_path) as checkpoint:
        target = torch.zeros(6, 10, dtype=torch.bfloat16)
        monkeypatch.setattr(torch, "empty", None)  # a second buffer could not be made
        checkpoint.read_into("matrix", 0, 3, 9, target)
    assert torch.equal(target, some_tensors()["matrix"][3:9])


def test_safetensors_come_before_bin_and_single_before_sharded(tmp_path: Path) -> None:
    for value, layout in enumerate(reversed(("single", "sharded", "bin", "bin-sharded"))):
        tensors = {name: torch.full((2,), float(value)) for name in ("a", "b", "c")}
        tiny.write_weights(tmp_path, tensors, layout)
        with open_checkpoint(tmp_path) as checkpoint:
            assert checkpoint.read("a")[0] == value


def test_symlinked_caches(tmp_path: Path) -> None:
    tensors = some_tensors()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "written").mkdir()
    snapshot = tmp_path / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    tiny.write_weights(tmp_path / "written", tensors, "sharded")
    for i, file in enumerate(sorted((tmp_path / "written").iterdir())):
        file.rename(tmp_path / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    with open_checkpoint(snapshot) as checkpoint:
        assert torch.equal(checkpoint.read("matrix"), tensors["matrix"])
    (tmp_path / "blobs" / "1").unlink()
    with pytest.raises(CheckpointError, match=r"-of-00003\.safetensors is a link to ../../blobs/1, which does"):
        open_checkpoint(snapshot)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights: none of model\.safetensors or model\.saf"):
        open_checkpoint(tmp_path)
    save_file(some_tensors(), tmp_path / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors alone cannot be read"):
        open_checkpoint(tmp_path)


def test_truncated_file_names_file_and_tensor(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    os.truncate(tmp_path / "model.safetensors", size - 2)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is truncated: tensor \w+ ends at byte {size}, "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("size", "message"), [(3, "3 bytes hold no safetensors header"), (40, "needs .* bytes of 40")])
def test_truncated_header(tmp_path: Path, size: int, message: str) -> None:
    save_file(some_tensors(), tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", size)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is truncated: .*{message}"):
        open_checkpoint(tmp_path)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    save_file({"only": torch.zeros(100)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 200)
        with pytest.raises(CheckpointError, match=r"safetensors was cut to 200 bytes while tensor only was read"):
            checkpoint.read("only")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "the safetensors header is not valid JSON"),
        (b"[]", "the safetensors header is no JSON object"),
        (b'{"a": {"dtype": "F32"}}', "the header's entry of tensor a is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "entry of tensor a is damaged"),
        (b'{"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}', "tensor a is I8, but only F16, BF16, F32"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', r"tensor a of shape \(2,\) .*needs 8 byt"),
    ],
)
def test_damaged_header(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
        open_checkpoint(tmp_path)


def test_other_contents(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file"):
        open_checkpoint(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="model.safetensors is a git-lfs pointer"):
        open_checkpoint(tmp_path)


def test_failing_open_leaves_no_file_open(tmp_path: Path) -> None:
    tiny.write_weights(tmp_path, some_tensors(), "sharded")
    os.truncate(tmp_path / "model-00003-of-00003.safetensors", 30)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


class Trap:
    """A pickled call: what loading anything but tensors would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_bin_with_more_than_tensors_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is refused: it holds more than tensors"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_damaged_bin(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(some_tensors(), file)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is truncated"):
        open_checkpoint(tmp_path)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds no dictionary of tensors"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1, dtype=torch.int8)}, file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: tensor a is torch\.int8, but only torch\.float16"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.zeros(1)}, "holds no dictionary of tensors"),
        ({"a": torch.zeros(1), "b": 3}, "holds no dictionary of tensors: b is a int"),
        ({"a": torch.eye(3).to_sparse()}, "tensor a is torch.sparse_coo"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "tensor a is torch.complex64, but only"),
        ({"a\nb" * 99: torch.zeros(3, dtype=torch.int8)}, r"tensor 'a\\nba\\nb.*\.\.\. .* is torch.int8, but only"),
    ],
)
def test_bin_with_other_contents(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin:? {message}"):
        open_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old", [False, True])
def test_damaged_bin_is_named_whatever_torch_says(tmp_path: Path, old: bool) -> None:
    """Bytes of its tables changed at random: read, or refused with the file's name and one line."""
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(600.0), "b": torch.ones(3, 5)}, file, _use_new_zipfile_serialization=not old)
    whole = file.read_bytes()
    rng, refused = random.Random(5), 0
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(700)] = rng.randrange(256)
        file.write_bytes(changed)
        try:
            open_checkpoint(tmp_path).close()
        except CheckpointError as error:
            refused += 1
            assert str(file) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
    assert refused > 100


def test_bin_of_old_format_strided_and_shared_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"strided": base.T, "shared": base, "row": base[1]}
    for old in (False, True):
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        with open_checkpoint(tmp_path) as checkpoint:
            for _ in range(2):  # what was let go comes back from the file
                assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())
        assert any("before torch 1.6" in record.message for record in caplog.records) == old


def test_large_bin_tensor_survives_being_let_go(tmp_path: Path) -> None:
    tensors = {name: torch.arange(30000.0) + i for i, name in enumerate("abc")}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        for name in "abcabc":
            assert torch.equal(checkpoint.read(name, 0, 100, 29000), tensors[name][100:29000])


def test_permissions_give_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINDIE_CHECK_INPUTFILES_PERMISSION", raising=False)
    tiny.write_weights(tmp_path, some_tensors(), "sharded")
    for file in tmp_path.glob("*.safetensors"):
        file.chmod(0o644)
    open_checkpoint(tmp_path).close()
    assert not caplog.records
    for file in tmp_path.glob("*-0000[12]-*"):
        file.chmod(0o664)
    open_checkpoint(tmp_path).close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "model-00001-of-00003.safetensors and 1 more can be changed by other users" in caplog.text
    caplog.clear()
    monkeypatch.setenv("MINDIE_CHECK_INPUTFILES_PERMISSION", "0")
    open_checkpoint(tmp_path).close()
    assert not caplog.records


@pytest.mark.full  # a rate, which a busy machine may not reach
def test_reading_is_faster_than_a_gigabyte_a_second(tmp_path: Path) -> None:
    """From the page cache into memory that is already there; about 6 GB/s on a quiet machine."""
    save_file({"large": torch.ones(64 << 20, dtype=torch.bfloat16).view(-1, 1024)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        target = torch.zeros(checkpoint.shape("large"), dtype=torch.bfloat16)
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            checkpoint.read_into("large", None, 0, 0, target)
            seconds.append(time.perf_counter() - begin)
    assert target.numel() * 2 / min(seconds) > 1e9
