"""What all command lines say of a word that no argument takes, and of values of the wrong type."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from atb_models import cli
from atb_models.command import values
from atb_models.command.parser import Parser, typed

# command -> the words that it needs, a flag with a letter missing and the flag that is meant
COMMANDS = {
    "run": ([], "--max_output_lengt", "--max_output_length"),
    "launch": ([], "--block_siz", "--block_size"),
    "chat": ([], "--temperatur", "--temperature"),
    "batch": (["in.jsonl", "out.jsonl"], "--model_nam", "--model_name"),
    "bench serve": (["--rate", "1"], "--num_request", "--num_requests"),
    "serve": ([], "--max_queu", "--max_queue"),
}


def refused(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """The one line that a command with a mistake in its words ends with, at status 2."""
    if command == "serve":
        pytest.importorskip("uvicorn")
    assert cli.main([*command.split(), *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err.rstrip("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_refused_and_the_nearest_one_named(capsys: pytest.CaptureFixture[str], command: str) -> None:
    words, typed, meant = COMMANDS[command]
    for more in ([typed, "3"], [f"{typed}=3"]):
        assert refused(capsys, command, *words, *more) == (
            f"atb-models: error: unknown flag {typed}; did you mean {meant}? (--help lists the flags)"
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_word_too_many_is_refused(capsys: pytest.CaptureFixture[str], command: str) -> None:
    words, _, _ = COMMANDS[command]
    takes_path = command in ("run", "launch")
    said = refused(capsys, command, *(["/weights"] if takes_path else words), "more")
    hint = ": the model path was given already" if takes_path else ""
    assert said == f"atb-models: error: unexpected word 'more'{hint} (--help lists the flags)"


def test_typed_options_are_the_flags_that_a_dataclass_names() -> None:
    @dataclass(frozen=True)
    class Options:
        size: int
        name: str | None

    parser = Parser()
    parser.add_argument("--size", type=int)
    parser.add_argument("--name")
    parser.add_argument("--other")
    assert typed(parser.parse(["--size", "3", "--other", "x"]), Options) == Options(3, None)


@pytest.mark.parametrize(
    "parse, text, value",
    [
        (values.positive, "7", 7),
        (values.positive_or_auto, "-1", values.AUTO),
        (values.positive_or_auto, "2", 2),
        (values.positive_number, "0.5", 0.5),
        (values.true_or_false, "False", False),
        (values.json_object, '{"a": [1]}', {"a": [1]}),
    ],
)
def test_value(parse: Callable[[str], Any], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "parse, text, message",
    [
        (values.positive, "0", "must be a whole number of 1 or more, not '0'"),
        (values.positive, "1.5", "must be a whole number of 1 or more, not '1.5'"),
        (values.positive_or_auto, "-2", "must be -1 (automatic) or a whole number of 1 or more, not '-2'"),
        (values.positive_number, "0", "must be a number above 0, not '0'"),
        (values.positive_number, "inf", "must be a number above 0, not 'inf'"),
        (values.positive_number, "nan", "must be a number above 0, not 'nan'"),
        (values.positive_number, "x", "must be a number above 0, not 'x'"),
        (values.true_or_false, "true", "must be True or False, not 'true'"),
        (values.json_object, "[1]", "must be a JSON object, as {\"num_hidden_layers\": 4}, not '[1]'"),
        (values.json_object, "{", "it is not valid JSON: "),
    ],
)
def test_value_of_the_wrong_type(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
