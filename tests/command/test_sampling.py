"""One table of sampling fields, and what follows it: parameters, checkpoint defaults, flags, documents."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from atb_models.clients.chat import build_parser as chat_parser
from atb_models.command.sampling import CLIENT_FIELDS, LAUNCHER_FIELDS, client_sampling
from atb_models.errors import ConfigError, RequestError
from atb_models.launcher.args import build_parser
from atb_models.models.generation import SAMPLING
from atb_models.sampling_params import DEFAULTS, SamplingParams
from atb_models.sampling_table import BY_NAME, FIELDS, SamplingField

SIMPLE = [field for field in FIELDS if field.kind in ("number", "whole number")]
# A default as the documents show it, where it is not the number itself.
SHOWN = {
    "": {"top_k": "all", "seed": "none", "stop": "none", "stop_token_ids": "none"}
    | dict.fromkeys(("ignore_eos", "logprobs"), "off"),
    ".zh": {"top_k": "全部", "seed": "无", "stop": "无", "stop_token_ids": "无"}
    | dict.fromkeys(("ignore_eos", "logprobs"), "关"),
}


def test_the_table_has_the_fields_of_the_parameters_in_their_order() -> None:
    assert [field.name for field in FIELDS] == [field.name for field in fields(SamplingParams)]


def test_defaults_change_nothing() -> None:
    assert DEFAULTS == {
        "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }  # fmt: skip
    assert SamplingParams(**DEFAULTS).is_plain_greedy


def test_a_checkpoint_may_set_what_the_table_says() -> None:
    assert set(SAMPLING) == {"do_sample", "max_new_tokens", *DEFAULTS}


@pytest.mark.parametrize("field", SIMPLE, ids=lambda field: field.name)
def test_parameters_have_the_ranges_of_the_table(field: SamplingField) -> None:
    step = 1 if field.kind == "whole number" else 1e-6
    ends = [(field.low, -step, not field.above_low), (field.high, step, True)]
    for end, outwards, belongs in ends:
        if abs(end) == float("inf"):
            SamplingParams(**{field.name: 2**70 if outwards > 0 else -(2**70)})
            continue
        number = int(end) if field.kind == "whole number" else float(end)
        SamplingParams(**{field.name: number - outwards})
        for value, is_allowed in ((number, belongs), (number + outwards, False)):
            assert field.allows(value) == is_allowed
            if is_allowed:
                SamplingParams(**{field.name: value})
            else:
                with pytest.raises(RequestError, match=f"^{field.name} must be {re.escape(field.allowed)}, not "):
                    SamplingParams(**{field.name: value})


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions}


@pytest.mark.parametrize("parser, names", [(build_parser(), LAUNCHER_FIELDS), (chat_parser(), CLIENT_FIELDS)])
def test_commands_have_the_flags_of_the_table(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    found = flags(parser)
    assert set(names) == set(BY_NAME) & set(found)
    for name in names:
        assert str(found[name].help).startswith(BY_NAME[name].help) and found[name].option_strings == [f"--{name}"]


def test_the_clients_have_run_pas_way_of_choosing_tokens() -> None:
    """But for what OpenAI's protocol does not know, or what a conversation has no use for."""
    assert set(LAUNCHER_FIELDS) - set(CLIENT_FIELDS) == {"stop_token_ids", "ignore_eos", "logprobs"}
    assert set(CLIENT_FIELDS) - set(LAUNCHER_FIELDS) == {"max_tokens"}
    for name in CLIENT_FIELDS:
        assert name in BY_NAME[name].names.chat, f"a server of OpenAI's protocol takes {name}"


def test_what_a_client_asks_for() -> None:
    line = "--min_p 0.1 --presence_penalty -1 --frequency_penalty 0.5 --stop a 'b c' --max_tokens 3 --seed 7"
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
    assert client_sampling(chat_parser().parse_args(words)) == {
        "max_tokens": 3, "min_p": 0.1, "presence_penalty": -1.0, "frequency_penalty": 0.5, "seed": 7,
        "stop": ["a", "b c"],
    }  # fmt: skip
    assert client_sampling(chat_parser().parse_args([])) == {}
    for flag, value in (("min_p", "2"), ("presence_penalty", "3"), ("frequency_penalty", "-2.5"), ("stop", "")):
        with pytest.raises(ConfigError, match=f"^--{flag} must be"):
            client_sampling(chat_parser().parse_args([f"--{flag}", value]))


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
def test_a_length_is_checked_as_it_is_read(value: str) -> None:
    with pytest.raises(ConfigError, match=f"--max_tokens: must be a whole number of 1 or more, not {value!r}"):
        chat_parser().parse_args(["--max_tokens", value])


def documented(root: Path, language: str) -> dict[str, list[str]]:
    """Default and meaning of each flag of the launcher's page."""
    lines = (root / "docs" / f"launcher{language}.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `--")]
    return {row[0].strip("`- "): row[1:] for row in cells}


@pytest.mark.parametrize("language", ["", ".zh"])
def test_documents_have_the_defaults_and_the_meaning_of_the_table(root: Path, language: str) -> None:
    table = documented(root, language)
    shown = SHOWN[language]
    for name in LAUNCHER_FIELDS:
        default, meaning = table[name]
        assert default == shown.get(name, f"{BY_NAME[name].default or 0:g}"), name
        if not language:
            assert set(BY_NAME[name].help.split()) <= set(re.findall(r"[\w'-]+:?", meaning)), name


@pytest.mark.parametrize("document", ["docs/service.md", "docs/service.zh.md"])
def test_documents_name_the_clients_flags(root: Path, document: str) -> None:
    text = (root / document).read_text("utf-8")
    listed = [names for names in re.findall(r"(?:`--\w+`\s*)+", text) if "--top_p" in names]
    assert [re.findall(r"--(\w+)", names) for names in listed] == [list(CLIENT_FIELDS)]
