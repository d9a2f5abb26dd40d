"""Absurd numbers in config.json: refused at once, with file and field, whatever way they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, LATER

from atb_models.engine.config import SIZES, EngineConfig
from atb_models.errors import CheckpointError, ConfigError
from atb_models.models.config_bounds import MOST, RANGES
from atb_models.models.config_reader import load_model_config
from atb_models.wording import named, shown

ABSURD: tuple[Any, ...] = (10**9 * 8, 2**62, 2**63, 2**64, 10**400, -1, -(10**400), True, False, "8", 8.0, [8],
                           {"a": 8}, float("inf"), float("nan"))  # fmt: skip
ALL = FAMILIES | LATER
STEPS = {
    "deepseek": ["first_k_dense_replace", "moe_layer_freq"],
    "qwen": ["decoder_sparse_step"],
    "qwen3_moe": ["decoder_sparse_step"],
}
SIZE_FIELDS = {
    family: sorted(MOST.keys() & config.keys())
    + STEPS.get(family, [])
    for family, config in ALL.items()
}


def write(folder: Path, family: str = "deepseek", **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**ALL[family], **fields}))
    return folder


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Nothing here may take long: the tests of a module's fields together have seconds."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 5


def refusal(folder: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        load_model_config(folder, overrides)
    message = str(refused.value)
    assert len(message) < 1000 and "\n" not in message
    return message


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(family, marks=pytest.mark.full) for family in LATER)])
def test_sizes(family: str, tmp_path: Path) -> None:
    assert len(SIZE_FIELDS[family]) >= 7
    for name in SIZE_FIELDS[family]:
        for value in ABSURD:
            message = refusal(write(tmp_path, family, **{name: value}))
            assert message.startswith(f"{tmp_path / 'config.json'}: {name} is "), message
            write(tmp_path, family)
            assert refusal(tmp_path, {name: value}).startswith(f"config_overrides: {name} is ")


@pytest.mark.parametrize("name", sorted(MOST))
def test_the_bound_is_named_and_holds(name: str, tmp_path: Path) -> None:
    """The largest is read as it is, be it for a model that fits nowhere; one more is refused with the number."""
    family = next((family for family in ALL if name in ALL[family]), "xverse")
    if name not in ALL[family]:
        return
    message = refusal(write(tmp_path, family, **{name: MOST[name] + 1}))
    assert f"{name} is {MOST[name] + 1}, but must be an integer of at least" in message
    assert message.endswith(f" and at most {MOST[name]}")
    write(tmp_path, family, **{name: MOST[name]})
    try:
        load_model_config(tmp_path)
    except ConfigError as error:  # it does not go with another field
        assert "must be an integer" not in str(error)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("rms_norm_eps", 1e-31, 0.2), ("rope_theta", 0.5, 1e16), ("initializer_range", -0.1, 101)],
)
def test_scalars(name: str, low: float, high: float, tmp_path: Path) -> None:
    assert name in RANGES
    senseless = (low, high, 0 if name != "initializer_range" else -1, -1.0, 1e308, -1e308, 10**400, float("inf"),
                 float("nan"), True, "1", [1.0], {})  # fmt: skip
    for value in senseless:
        message = refusal(write(tmp_path, **{name: value}))
        assert message.startswith(f"{tmp_path / 'config.json'}: {name} is ") and "but must be a number from " in message
        assert f"{RANGES[name].low:g} to {RANGES[name].high:g}" in message
        write(tmp_path)
        assert refusal(tmp_path, {name: value}).startswith(f"config_overrides: {name} is ")


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_scalars_of_the_rotation(field: str, tmp_path: Path) -> None:
    for name in ("factor", "rope_theta"):
        for value in (0, -2.0, 0.5, 1e308, 10**400, float("inf"), float("nan"), True, "2", [2]):
            rope = {"type": "linear", "factor": 2.0, name: value}
            message = refusal(write(tmp_path, **{field: rope}))
            assert message.startswith(f"{tmp_path / 'config.json'}: {field}: {name} is "), message
    for kind in ("dynamic", ["linear"], {"linear": 1}, 3, True, "x" * 100_000):
        assert f"{field} is " in refusal(write(tmp_path, **{field: {"type": kind, "factor": 2.0}}))


def test_products(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, num_hidden_layers=1000, n_routed_experts=4000))
    assert "num_hidden_layers is 1000, which with 4000 experts each makes 3996000 experts, more than 65536" in message
    load_model_config(write(tmp_path, num_hidden_layers=61, n_routed_experts=1000))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", [1] * 5000),
        ("eos_token_id", 10**400),
        ("eos_token_id", [2**40]),
        ("eos_token_id", [True]),
        ("bos_token_id", 2**31),
        ("bos_token_id", -(10**400)),
        ("mlp_only_layers", list(range(100_000))),
        ("mlp_only_layers", [10**400]),
        ("hidden_act", ["silu"] * 10_000),
        ("hidden_act", {"silu": {}}),
        ("model_type", "x" * 100_000),
        ("model_type", ["qwen2_moe"]),
        ("torch_dtype", {"a": 1}),
        ("torch_dtype", 16),
        ("tie_word_embeddings", 1),
        ("layer_types", "full_attention"),
        ("layer_types", ["sliding_attention"] * 100_000),
        ("norm_topk_prob", "true"),
        ("clip_qkv", 10**400),
        ("logit_scale", [[[[]]]] * 10_000),
    ],
)
def test_other_types_and_lengths(name: str, value: Any, tmp_path: Path) -> None:
    assert f"config.json: {name} is " in refusal(write(tmp_path, "qwen", **{name: value}))


def test_a_long_list_of_dense_layers_takes_no_time(tmp_path: Path) -> None:
    write(tmp_path, "qwen", num_hidden_layers=1000, mlp_only_layers=list(range(4096)))
    assert load_model_config(tmp_path).moe_layers == (False,) * 1000


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_deep_nesting(nested: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ' + nested + "}")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON: .*(recursion|nested)"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("depth", [50, 500, 900])
def test_nesting_that_can_just_be_read(depth: int, tmp_path: Path) -> None:
    for name in ("hidden_size", "rope_scaling", "clip_qkv", "use_alibi_2", "eos_token_id", "layer_types"):
        text = json.dumps(FAMILIES["deepseek"] | {name: "HERE"}).replace('"HERE"', "[" * depth + "]" * depth)
        (tmp_path / "config.json").write_text(text)
        assert f"config.json: {name} is " in refusal(tmp_path)


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    for digits in (400, 5_000, 1_000_000):
        text = json.dumps(FAMILIES["deepseek"]).replace('"hidden_size": 64', '"hidden_size": 1' + "0" * digits)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises((CheckpointError, ConfigError), match=r"config\.json(: hidden_size is| is not valid JSON)"):
            load_model_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_of_200_megabytes_is_not_read(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=rf"{name} has 200000000 bytes, but at most 4194304 are read"):
        load_model_config(tmp_path)


def test_overrides_that_are_no_json(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    for overrides in (ring, {"a": ring}, {"a": {1, 2}}, {1: 2}, "text", [1], {"a": deep}, {"hidden_size": object()}):
        with pytest.raises(ConfigError, match="config_overrides must be a dict of JSON values, not"):
            EngineConfig(config_overrides=overrides)  # type: ignore[arg-type]
    EngineConfig(config_overrides={"rope_scaling": {"type": "linear", "factor": 2}})


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_engine(name: str) -> None:
    for value in (2**62, 10**400, SIZES[name] + 1):
        with pytest.raises(ConfigError, match=f"{name} must be at most {SIZES[name]}, not "):
            EngineConfig(**{name: value})
    EngineConfig(**{name: SIZES[name]})


def test_values_are_shown_shortly() -> None:
    assert shown("abc") == "'abc'" and shown(1 << 30) == "1073741824" and shown(True) == "True"
    assert shown(10**400) == "a number of about 398 digits" and shown(-(10**400)) == shown(10**400)
    assert shown("x" * 500) == "'" + "x" * 119 + "... (502 characters)"
    assert shown([10**9000]) == "a list that is too deep or too large to be shown"
    assert named(["b", "a"]) == "a, b" and named(map(str, range(30)), 2) == "0, 1 and 28 more"
    assert named(["a\nb"]) == "'a\\nb'"
