"""run_pa's flags: names, defaults, what is refused and how."""

from __future__ import annotations

import itertools
import logging
import shlex

import pytest

from atb_models.command.sampling import sampling_params
from atb_models.engine.config import DEVICES, DTYPE_CHOICES, KV_DTYPES, LOAD_FORMATS, QUANTIZE, EngineConfig
from atb_models.errors import ConfigError
from atb_models.launcher.args import FIXED, REFUSED, build_parser, parse_args
from atb_models.launcher.inputs import check_lengths, input_length
from atb_models.launcher.main import _warn_of_lengths
from atb_models.launcher.prepare import prepare
from atb_models.outputs import RequestOutput
from atb_models.sampling_params import DEFAULTS, SamplingParams

# contract of MindIE's run_pa: flag -> default, for the flags that mean something here
MINDIE_DEFAULTS = {
    "model_path": None,
    "input_texts": ["What's deep learning?"],
    "input_ids": None,
    "input_file": None,
    "max_prefill_batch_size": None,
    "max_batch_size": 1,
    "max_output_length": 20,
    "max_position_embeddings": None,
    "max_prefill_tokens": -1,
    "block_size": 128,
    "chat_template": None,
    "ignore_eos": False,
    "is_chat_model": False,
    "system_prompt": None,
    "trust_remote_code": False,
    "load_tokenizer": True,
    "tp": -1,
    "dp": -1,
    "moe_tp": -1,
    "moe_ep": -1,
    "pp": -1,
    "sp": -1,
    "cp": -1,
    "microbatch_size": -1,
    "max_loras": 0,
    "max_lora_rank": 0,
}


def parse(line: str):
    return parse_args(shlex.split(line))


def test_defaults_are_those_of_mindie():
    args = vars(parse(""))
    assert {name: args[name] for name in MINDIE_DEFAULTS} == MINDIE_DEFAULTS
    assert input_length(parse(""), limit=8192) == 1024


# every flag that is not refused: what is typed -> the value it gives
ACCEPTED = {
    "model_path": ("/w", "/w"),
    "download": ("", True),
    "trust_remote_code": ("", True),
    "load_tokenizer": ("True", True),
    "chat_template": ("t.jinja", "t.jinja"),
    "dtype": ("bf16", "bf16"),
    "device": ("cpu", "cpu"),
    "tp": ("4", 4),
    "load_format": ("dummy", "dummy"),
    "quantize": ("w8a16", "w8a16"),
    "deterministic": ("", True),
    "graph_capture": ("", True),
    "config_overrides": ("'{\"num_hidden_layers\": 4}'", {"num_hidden_layers": 4}),
    "input_texts": ("one 'two words'", ["one", "two words"]),
    "input_ids": ("1,2 3", [[1, 2], [3]]),
    "input_file": ("chat.jsonl --is_chat_model", "chat.jsonl"),
    "is_chat_model": ("", True),
    "system_prompt": ("'Be brief.' --is_chat_model", "Be brief."),
    "stream": ("", True),
    "max_batch_size": ("3", 3),
    "max_input_length": ("7", 7),
    "max_output_length": ("7", 7),
    "max_position_embeddings": ("2048", 2048),
    "max_prefill_tokens": ("64", 64),
    "max_prefill_batch_size": ("2", 2),
    "block_size": ("16", 16),
    "kv_blocks": ("9", 9),
    "kv_dtype": ("int8", "int8"),
    "prefix_cache": ("off", "off"),
    "do_sample": ("", True),
    "use_generation_config": ("", True),
    "temperature": ("0.5", 0.5),
    "top_k": ("5", 5),
    "top_p": ("0.9", 0.9),
    "min_p": ("0.1", 0.1),
    "repetition_penalty": ("1.1", 1.1),
    "presence_penalty": ("-0.5", -0.5),
    "frequency_penalty": ("0.5", 0.5),
    "seed": ("3", 3),
    "stop": ("'. ' end", [". ", "end"]),
    "stop_token_ids": ("5 6", [5, 6]),
    "ignore_eos": ("", True),
    "logprobs": ("2", 2),
    "plan": ("", True),
    "print_graph": ("", True),
    "profile": ("", True),
    "format": ("json --plan", "json"),
    "svg": ("g.svg --print_graph", "g.svg"),
    "all_layers": ("--print_graph", True),
    "chip": ("H200 --plan", "H200"),
    "chips_file": ("c.json --profile", "c.json"),
}


@pytest.mark.parametrize("flag", ACCEPTED)
def test_flag_gives_its_value(flag):
    typed, value = ACCEPTED[flag]
    assert getattr(parse(f"--{flag} {typed}"), flag) == value


def test_graph_capture_may_be_left_open():
    assert [parse(line).graph_capture for line in ("", "--graph_capture", "--no_graph_capture")] == [None, True, False]


def test_every_flag_is_tested():
    flags = {action.dest for action in build_parser()._actions} - {"help", "weight_path"}
    assert flags == set(ACCEPTED) | set(REFUSED) | set(FIXED)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--plan --print_graph", "--plan and --print_graph are two different things"),
        ("--profile --plan", "--plan and --profile are two different things"),
        ("--format json", "--format goes with --plan or --print_graph only"),
        ("--svg g.svg --plan", "--svg goes with --print_graph only"),
        ("--all_layers", "--all_layers goes with --print_graph only"),
        ("--chip H200", "--chip goes with --plan or --profile only"),
        ("--chips_file c.json --print_graph", "--chips_file goes with --plan or --profile only"),
        ("--plan --format dot", "--format dot is of --print_graph"),
        ("--profile --graph_capture", "--graph_capture launches a decode step as a whole"),
    ],
)
def test_flags_of_looking_that_do_not_go_together(line, message):
    with pytest.raises(ConfigError, match=message):
        parse(line)


def test_a_seed_without_effect_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        prepare(parse("--seed 3"))
    assert [record.getMessage() for record in caplog.records if "--seed" in record.getMessage()] == [
        "--seed has no effect: decoding is greedy (--do_sample samples)"
    ]


@pytest.mark.parametrize("flag", REFUSED)
@pytest.mark.parametrize("value", ["", "something"])
def test_unsupported_flag_is_refused_by_name(flag, value):
    with pytest.raises(ConfigError, match=f"--{flag} is refused: ") as caught:
        parse(f"--{flag} {value}")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("flag", FIXED)
def test_unsupported_value_is_refused_by_name(flag):
    allowed, reason = FIXED[flag]
    for value in allowed:
        assert getattr(parse(f"--{flag} {value}"), flag) == value
    with pytest.raises(ConfigError, match=f"--{flag} 2 is refused: "):
        parse(f"--{flag} 2")
    with pytest.raises(ConfigError, match=f"--{flag} x is refused: "):
        parse(f"--{flag} x")
    assert reason


@pytest.mark.parametrize("path", ["/w", "'/a path/with blanks'"])
@pytest.mark.parametrize("trust", ["-trust_remote_code", "--trust_remote_code"])
def test_path_and_trust_flag_in_any_order(path, trust):
    words = [path, trust, "--input_texts='Hi there'", "--max_output_length 3"]
    for order in itertools.permutations(words):
        args = parse(" ".join(order))
        assert (args.model_path, args.trust_remote_code) == (shlex.split(path)[0], True)
        assert (args.input_texts, args.max_output_length) == (["Hi there"], 3)


def test_a_later_flag_replaces_an_earlier_one():
    assert parse("--input_texts=default --max_output_length=10 /w --input_texts mine").input_texts == ["mine"]


BAD = {
    "--foo 3": "unknown flag --foo",
    "--max_output_len 3": "did you mean --max_output_length",
    "/w /v": "unexpected word '/v'",
    "''": "model path is empty",
    "/w --model_path /v": "two model paths: '/w' and --model_path '/v'",
    "--max_batch_size 0": "--max_batch_size: must be a whole number of 1 or more, not '0'",
    "--max_input_length -3": "--max_input_length: must be a whole number of 1 or more, not '-3'",
    "--max_output_length 1.5": "--max_output_length: must be a whole number of 1 or more, not '1.5'",
    "--max_prefill_tokens 0": "--max_prefill_tokens: must be -1",
    "--block_size 577": "--block_size: must be a whole number from 1 to 576, not 577",
    "--block_size 0": "--block_size: must be a whole number from 1 to 576, not '0'",
    "--tp 0": "--tp: must be",
    "--input_ids 1,x": "--input_ids: must be token numbers joined by commas, not '1,x'",
    "--input_ids 1,-2": "--input_ids: must be token numbers",
    "--load_tokenizer true": "--load_tokenizer: must be True or False, not 'true'",
    "--load_tokenizer False": "--load_tokenizer False leaves no way to read text",
    "--load_tokenizer False --input_ids 1 --is_chat_model": "--load_tokenizer False leaves no way to read text",
    "--input_file chat.jsonl": "--input_file holds conversations and needs --is_chat_model",
    "--system_prompt x": "--system_prompt stands before --input_texts as chats: it needs --is_chat_model",
    "--system_prompt x --is_chat_model --input_file c.jsonl": "and neither --input_file nor --input_ids",
    "--system_prompt x --is_chat_model --input_ids 1": "and neither --input_file nor --input_ids",
    "--config_overrides [1]": "--config_overrides: must be a JSON object",
    "--config_overrides {": "--config_overrides: it is not valid JSON",
    "--max_position_embeddings 99 --config_overrides '{\"max_position_embeddings\": 98}'": "99 contradicts 98",
    "--do_sample --temperature 0": "--do_sample asks for sampling, --temperature 0 for greedy",
    "--dtype fp8": "--dtype: invalid choice: 'fp8'",
    "--temperature": "--temperature: expected one argument",
    "--trust_remote_code=1": "--trust_remote_code/-trust_remote_code: takes no value, not '1'",
}


@pytest.mark.parametrize("line", BAD)
def test_mistake_is_a_config_error_that_names_it(line):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_beyond_the_positions_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="--max_input_length 500 and --max_output_length 20 need 520 positions.* 512"):
        parse("--max_position_embeddings 512 --max_input_length 500")
    with pytest.raises(ConfigError, match="--max_output_length 20 need 21 positions, config.json allows 16"):
        check_lengths(parse(""), 16, "config.json")


def test_token_ids_beyond_the_positions_are_refused_before_they_run():
    check_lengths(parse("--input_ids 1,2 --max_output_length 14"), 16, "config.json")
    message = "request 1: 3 --input_ids and --max_output_length 14 need 17 positions, config.json allows 16"
    with pytest.raises(ConfigError, match=message):
        check_lengths(parse("--input_ids 1,2 1,2,3 --max_output_length 14"), 16, "config.json")
    with pytest.raises(ConfigError, match="need 17 positions, --max_position_embeddings allows 16"):
        parse("--input_ids 1,2,3 --max_output_length 14 --max_position_embeddings 16")
    unused = parse("--input_ids 1,2,3 --max_output_length 14 --input_file chat.jsonl --is_chat_model")
    check_lengths(unused, 16, "config.json")


def output_of(prompt: int, answer: int, finish_reason: str) -> RequestOutput:
    return RequestOutput(0, [1] * prompt, [2] * answer, "", finish_reason)


def length_warnings(caplog, line: str, output: RequestOutput) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "atb_models"):
        _warn_of_lengths([output], parse(line))
    return [record.getMessage() for record in caplog.records]


def test_answer_cut_by_the_positions_is_named_with_both_numbers(caplog):
    (line,) = length_warnings(caplog, "--max_output_length 20", output_of(505, 7, "length"))
    assert line.startswith("request 0 ended after 7 of --max_output_length 20 tokens") and "505" in line
    assert not length_warnings(caplog, "--max_output_length 20", output_of(3, 20, "length"))
    assert not length_warnings(caplog, "--max_output_length 20", output_of(3, 7, "stop"))


def test_long_prompt_is_measured_by_the_given_length_or_1024(caplog):
    """Not by what the positions leave: with 512 of them and 511 for the answer, 1."""
    assert not length_warnings(caplog, "--max_output_length 511", output_of(3, 511, "length"))
    (line,) = length_warnings(caplog, "", output_of(1025, 20, "length"))
    assert "1025 prompt tokens, more than --max_input_length 1024;" in line
    (line,) = length_warnings(caplog, "--max_input_length 2", output_of(3, 20, "length"))
    assert "3 prompt tokens, more than --max_input_length 2;" in line


def test_choices_and_defaults_are_the_engines():
    actions = {action.dest: action for action in build_parser()._actions}
    assert (actions["dtype"].choices, actions["device"].choices) == (DTYPE_CHOICES, DEVICES)
    assert (actions["load_format"].choices, actions["quantize"].choices) == (LOAD_FORMATS, QUANTIZE)
    assert actions["kv_dtype"].choices == KV_DTYPES
    for name in ("dtype", "load_format", "quantize", "kv_dtype", "block_size", "device"):
        assert actions[name].default == getattr(EngineConfig, name)


def test_default_input_length_ends_with_the_positions():
    args = parse("--max_position_embeddings 512")
    assert input_length(args, 512) == 492


def test_greedy_unless_asked():
    neutral = {**DEFAULTS, "temperature": 0.0}
    params = sampling_params(parse(""), {})
    assert {name: getattr(params, name) for name in neutral} == neutral
    assert params.resolve({"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.3}).temperature == 0
    assert params.max_tokens == 20


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--do_sample", {"temperature": 1.0, "top_k": 0}),
        ("--top_p 0.9", {"temperature": 1.0, "top_p": 0.9}),
        ("--temperature 0.5 --seed 3", {"temperature": 0.5, "seed": 3}),
        ("--top_k 1", {"temperature": 1.0, "top_k": 1}),
        ("--min_p 0.1", {"temperature": 1.0, "min_p": 0.1}),
        ("--top_k 0", {"temperature": 0.0}),
        ("--top_k -1", {"temperature": 0.0}),
        ("--top_p 1", {"temperature": 0.0}),
        ("--min_p 0", {"temperature": 0.0}),
        ("--top_k 0 --top_p 1.0 --min_p 0.0 --temperature 0", {"temperature": 0.0}),
        ("--top_p 1 --do_sample", {"temperature": 1.0}),
        ("--top_p 1 --top_k 3", {"temperature": 1.0}),
        ("--temperature 0 --top_k 3", {"temperature": 0.0, "top_k": 3}),
        ("--repetition_penalty 1.2", {"temperature": 0.0, "repetition_penalty": 1.2}),
        ("--use_generation_config", dict.fromkeys(DEFAULTS)),
        ("--use_generation_config --top_k 3", {"temperature": 1.0, "top_k": 3, "top_p": None}),
        ("--stop a 'b c' --stop_token_ids 3 4 --ignore_eos --logprobs 2",
         {"stop": ("a", "b c"), "stop_token_ids": (3, 4), "ignore_eos": True, "logprobs": 2}),
    ],
)  # fmt: skip
def test_sampling_flags(line, expected):
    params = sampling_params(parse(line), {})
    assert isinstance(params, SamplingParams)
    assert {name: getattr(params, name) for name in expected} == expected


def test_sampling_value_out_of_range_names_the_flag():
    with pytest.raises(ConfigError, match=r"--top_p must be .*, not 1.5"):
        sampling_params(parse("--top_p 1.5"), {})
