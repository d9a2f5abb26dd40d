"""ModelSlim's files that are damaged: the error names the file and the tensor."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atb_models.errors import AtbError, CheckpointError
from atb_models.layers.storage import Storage
from tests.models.quantized.modelslim.small import (
    NEW,
    OLD,
    TENSORS,
    K,
    Q,
    configure,
    describe,
    describe_null,
    fails,
    write,
)
from tests.models.quantized.modelslim.writer import Form, every, save
from tests.models.quantized.reading import opened, scheme_of


@pytest.mark.parametrize(
    ("entries", "texts"),
    [
        ({f"{Q}.weight": "W9A9"}, (f"the type of tensor {Q}.weight is 'W9A9', which is none of ModelSlim's",)),
        ({f"{Q}.weight": ["W8A16"]}, (f"the type of tensor {Q}.weight is ['W8A16'], but must be a text",)),
        ({f"{Q}.weight": {"type": "W8A16"}}, (f"the type of tensor {Q}.weight is {{'type': 'W8A16'}}",)),
        ({f"{Q}.weight": 8}, (f"the type of tensor {Q}.weight is 8, but must be a text",)),
        ({"group_size": "64"}, ("group_size is '64', but must be one of 0, 32, 64, 128, 256",)),
        ({"group_size": 48}, ("group_size is 48, but must be one of",)),
        ({"group_size": True}, ("group_size is True, but must be one of",)),
        ({"metadata": 3}, ("metadata is 3, but must be an object",)),
    ],
)
def test_damaged_descriptions(tmp_path: Path, entries: dict[str, Any], texts: tuple[str, ...]) -> None:
    write(tmp_path)
    describe(tmp_path, **entries)
    fails(tmp_path, CheckpointError, str(tmp_path / NEW), *texts)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not valid JSON"),
        (b'{"a.weight": "FLOAT"', "is not valid JSON"),
        (b'{"a.weight": "FLOAT", "a.weight": "W8A8"}', "the key 'a.weight' stands twice"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b"{}", "describes no tensor"),
        (b"version https://git-lfs.github.com/spec/v1", "is a git-lfs pointer"),
        (b"{" + b" " * (24 << 20) + b"}", "bytes, but at most 25165824 are read"),
        (b'{"a.weight": ' + b"[" * 2_500_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_description(tmp_path: Path, content: bytes, text: str) -> None:
    write(tmp_path)
    (tmp_path / NEW).write_bytes(content)
    fails(tmp_path, CheckpointError, NEW, text)


def test_a_large_description_is_read(tmp_path: Path) -> None:
    """Five megabytes of entries, of which the first that is not there is named."""
    write(tmp_path)
    describe(tmp_path, **{f"model.layers.{place}.mlp.experts.gate_proj.weight": "W8A16" for place in range(90_000)})
    assert (tmp_path / NEW).stat().st_size > 5 << 20
    fails(tmp_path, CheckpointError, "has no tensor model.layers.0.mlp.experts.gate_proj.weight, which", "90000 of")


@pytest.mark.parametrize("name", [f"{Q}.weight", f"{Q}.weight_scale", f"{Q}.weight_offset", "model.norm.weight"])
def test_a_tensor_that_is_not_there(tmp_path: Path, name: str) -> None:
    written = write(tmp_path, version="0.0.0")
    del written.tensors[name]
    save(tmp_path, written, Form("w8a16", every("W8A16")), {})
    fails(tmp_path, CheckpointError, f"has no tensor {name}, which {tmp_path / OLD.format('w8a16')} describes (1 of 7")


# type, part of the linear map (or another tensor), what becomes of it, and what is said of it
BAD = (
    ("W8A16", "weight", lambda x: x.int(), "is int32, but must be int8 for type W8A16"),
    ("W8A16", "weight", lambda x: x[0].clone(), "has shape (128,), but a weight is a matrix"),
    ("W8A16", "weight_scale", lambda x: x.long(), "is int64, but must be float for type"),
    ("W8A16", "weight_scale", lambda x: x[:7].clone(), "of shape (7, 1) does not fit"),
    ("W8A16", "weight_scale", lambda x: x.expand(8, 3).clone(), "of shape (8, 3) does not fit"),
    ("W8A16", "weight_scale", lambda x: x[None], "has shape (1, 8, 1), but scales are"),
    ("W8A16", "weight_offset", lambda x: x[:4].clone(), "has shape (4, 1), but must have (8, 1) or (8,)"),
    ("W8A16", "weight_offset", lambda x: x.int(), "is int32, but must be float or int8"),
    ("W8A8", "deq_scale", lambda x: x.int(), "is int32, but must be float or int64"),
    ("W8A8", "deq_scale", lambda x: x[:5].clone(), "has shape (5,), but must have (8,) or (8, 1)"),
    ("W8A8", "deq_scale", lambda x: x.long() - 7, "holds integers that are not the bits of float32"),
    ("W8A8", "quant_bias", lambda x: x.float(), "is float32, but must be int32"),
    ("W8A8", "quant_bias", lambda x: x[:5].clone(), "has shape (5,), but must have (8,) or (8, 1)"),
    ("W8A8", "input_scale", lambda x: x.expand(2).clone(), "has shape (2,), but must have (1,) or ()"),
    ("W8A8", "input_offset", lambda x: x.int(), "is int32, but must be float or int8"),
    ("W8A8", "input_scale", lambda x: x * 0, "is [0.0], but must be above 0"),
    ("W8A8", "input_scale", lambda x: x * float("nan"), "is [nan], but must be above 0"),
    ("W4A16", "weight", lambda x: x * 16, "but 4 bits are -8 to 7"),
    ("W8A16", "model.norm.weight", lambda x: x.to(torch.int8), "is torch.int8, but"),
)


@pytest.mark.parametrize(("kind", "part", "make", "text"), BAD)
def test_tensors_that_do_not_fit_their_type(
    tmp_path: Path, kind: str, part: str, make: Callable[[Tensor], Tensor], text: str
) -> None:
    name = part if part in TENSORS else f"{Q}.{part}"
    written = write(tmp_path, kind, "0.0.0")
    written.tensors[name] = make(written.tensors[name])
    save(tmp_path, written, Form(kind.lower(), every(kind)), {})
    file = tmp_path / f"quant_model_weight_{kind.lower()}.safetensors"
    fails(tmp_path, CheckpointError, f"{file}: tensor {name} ", text)


def test_a_static_weight_without_its_bias_of_integers(tmp_path: Path) -> None:
    """Nor described: the type alone says that it must be there."""
    written = write(tmp_path, "W8A8", "0.0.0")
    del written.tensors[f"{K}.quant_bias"], written.types[f"{K}.quant_bias"]
    save(tmp_path, written, Form("w8a8", every("W8A8")), {})
    fails(tmp_path, CheckpointError, f"has no tensor {K}.quant_bias, which must be there for type W8A8 of {K}.weight")


def test_a_tied_head_need_not_be_there(tmp_path: Path) -> None:
    """The saver describes it, and safetensors has no second name for the memory of the embedding."""
    write(tmp_path)
    describe(tmp_path, **{"lm_head/weight": "FLOAT"})
    with opened(tmp_path) as (_, source):
        assert "lm_head.weight" not in source.names()
    describe(tmp_path, **{"lm_head/weight": "W8A16"})
    fails(tmp_path, CheckpointError, "has no tensor lm_head.weight, which")


def test_integers_that_no_description_tells_of(tmp_path: Path) -> None:
    written = write(tmp_path, version="0.0.0")
    written.tensors["model.extra.weight"] = torch.zeros(2, dtype=torch.int8)
    save(tmp_path, written, Form("w8a16", every("W8A16")), {})
    fails(tmp_path, CheckpointError, "tensor model.extra.weight is torch.int8, but", "has None for it")


def test_scales_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    written = write(tmp_path, version="0.0.0")
    written.tensors[f"{Q}.weight_scale"][2:4] = float("nan")
    save(tmp_path, written, Form("w8a16", every("W8A16")), {})
    with opened(tmp_path) as (_, source):
        assert source.read_into(f"{Q}.weight_scale", 0, 1, 4, torch.empty(3)) == 2


@pytest.mark.parametrize("group", [32, 128])
def test_a_group_that_does_not_give_the_number_of_scales(tmp_path: Path, group: int) -> None:
    write(tmp_path, "W4A16", group=64)
    describe(tmp_path, group_size=group)
    fails(tmp_path, CheckpointError, f"{Q}.weight_scale of shape (8, 2) does not fit {Q}.weight", f"group_size {group}")


NULLS = ("version", "group_size", "kv_quant_type", "metadata", "optional", "fa_quant_type", "is_nzcasted", "other")


@pytest.mark.parametrize("name", NULLS)
def test_null_is_as_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    write(tmp_path, version="0.0.0")
    describe_null(tmp_path, name)
    with opened(tmp_path) as (scheme, _):
        assert scheme.storage(f"{Q}.weight") == Storage(8)
    assert not caplog.records


def test_a_null_leaves_the_number_to_the_older_field(tmp_path: Path) -> None:
    """In the description to config.json, and there to its older field."""
    write(tmp_path, "W4A16", "0.0.0", group=64)
    describe_null(tmp_path, "group_size")
    configure(tmp_path, quantization={"group_size": 64}, quantization_config={"group_size": None})
    assert scheme_of(tmp_path).storage(f"{Q}.weight") == Storage(4, 64)
    configure(tmp_path, quantization={"group_size": None})
    assert scheme_of(tmp_path).storage(f"{Q}.weight") == Storage(4, 64), "by the shape of the scales"


def test_unknown_fields_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    describe(tmp_path, some_tool="x", metadata={"other": 1})
    scheme_of(tmp_path)
    messages = [record.message for record in caplog.records]
    assert any(re.search(r"unknown fields are ignored: some_tool$", message) for message in messages)
    assert any(re.search(r"unknown fields of metadata are ignored: other$", message) for message in messages)


KINDS = ("FLOAT", "W8A8", "W8A8_DYNAMIC", "W4A16", "C8")
VALUES: tuple[Any, ...] = (*KINDS, None, [], {}, 3, -1, 1e400, True, "", "w8a8", {"quarot": 1})
GLOBALS = ("version", "group_size", "model_quant_type", "kv_quant_type", "metadata", "optional", "fa_quant_type")
MAKES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[:1].clone(),
    lambda x: x[None],
    lambda x: x.flatten(),
    lambda x: x.float(),
    lambda x: x.long(),
    lambda x: x.to(torch.int8),
    lambda x: x.bool(),
    lambda x: x.to(torch.float8_e4m3fn),
    lambda x: torch.zeros(0),
    lambda x: torch.tensor(3.0),
)


@pytest.mark.parametrize("kind", ["W8A8", "W8A8_MIX", "W4A16"])
def test_any_damage_is_refused_by_name_or_harmless(tmp_path: Path, kind: str) -> None:
    """Wrong entries in the description, or tensors of other shapes and types, some at a time."""
    ends = {"refused": 0, "read": 0}
    for seed in range(150):
        chosen, folder = random.Random(seed), tmp_path / str(seed)
        written = write(folder, kind, "0.0.0")
        for _ in range(chosen.randint(1, 2)):
            if chosen.random() < 0.5:
                name = chosen.choice((*written.types, *GLOBALS))
                describe(folder, **{name.replace(".", "/"): chosen.choice(VALUES)})
            else:
                name = chosen.choice(list(written.tensors))
                written.tensors[name] = chosen.choice(MAKES)(written.tensors[name])
                save_file(written.tensors, folder / f"quant_model_weight_{kind.lower()}.safetensors")
        try:
            with opened(folder) as (scheme, source):
                for name in source.names():
                    source.read_into(name, None, 0, 0, torch.empty(source.shape(name)))
                    scheme.has_bias(name)
            ends["read"] += 1
        except AtbError as error:
            assert str(folder) in str(error) and len(str(error)) < 1000, str(error)
            ends["refused"] += 1
    assert ends["refused"] > 75 and ends["read"] > 10, ends
