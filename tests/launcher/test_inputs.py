"""Which requests run_pa makes of its input flags."""

from __future__ import annotations

import json
import logging

import pytest

from atb_models.errors import ConfigError
from atb_models.launcher.args import parse_args
from atb_models.launcher.inputs import Inputs, read_inputs


def read(*argv: str) -> Inputs:
    return read_inputs(parse_args(argv))


def test_one_input_is_copied_several_are_not():
    assert read("--max_batch_size", "3") == Inputs(["What's deep learning?"] * 3)
    assert read("--max_batch_size", "3", "--input_texts", "a", "b") == Inputs(["a", "b"])


def test_text_naming_a_file_is_its_content(tmp_path):
    (tmp_path / "question.txt").write_text("你好,你是谁？", encoding="utf-8")
    assert read("--input_texts", str(tmp_path / "question.txt"), str(tmp_path)).items == [
        "你好,你是谁？",
        str(tmp_path),
    ]


def test_checkpoint_among_the_texts_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").touch()
    folder = str(tmp_path / "weights")
    message = f"{folder} is a checkpoint folder; put it before --input_texts, or use --model_path"
    with pytest.raises(ConfigError, match=message):
        read("--input_texts", "a", folder)
    monkeypatch.chdir(folder)
    assert read("--input_texts", "").items == [""]  # not the working folder


def test_text_that_is_not_utf8_is_named():
    with pytest.raises(ConfigError, match=r"--input_texts is not UTF-8 text: 'b\\udcff', character 2"):
        read("--input_texts", "a", "b\udcff")


def test_long_text_is_no_file_name():
    assert read("--input_texts", "x" * 5000).items == ["x" * 5000]


def test_ids_come_before_texts(caplog):
    assert read("--input_ids", "1,2", "3", "--input_texts", "a") == Inputs([[1, 2], [3]])
    with caplog.at_level(logging.WARNING, "atb_models"):
        assert not read("--input_ids", "1", "--is_chat_model").is_chat
    assert "--is_chat_model has no effect on --input_ids" in caplog.text


def test_system_prompt_stands_before_each_text():
    system = {"role": "system", "content": "Be brief. 简短"}
    texts = ["--input_texts", "Hi", "Who?"]
    asked = read("--is_chat_model", *texts, "--system_prompt", "Be brief. 简短")
    assert asked == Inputs([[system, {"role": "user", "content": text}] for text in ("Hi", "Who?")], is_chat=True)
    with pytest.raises(ConfigError, match=r"--system_prompt is not UTF-8 text: '\\udcff', character 1"):
        read("--is_chat_model", "--system_prompt", "\udcff")


def test_chat_makes_a_users_turn():
    assert read("--is_chat_model", "--input_texts", "Hi") == Inputs([[{"role": "user", "content": "Hi"}]], is_chat=True)


def test_conversations_replace_all(tmp_path):
    first = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "?"},
    ]
    second = [{"role": "user", "content": "你是谁"}]
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{json.dumps(first)}\n\n{json.dumps(second)}\n", encoding="utf-8")
    assert read("--is_chat_model", "--input_file", str(path), "--input_ids", "1") == Inputs(
        [first, second], is_chat=True
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "line 1 is not valid JSON"),
        ('[{"role": "user"}]', "line 1 is no conversation"),
        ("[]", "line 1 is no conversation"),
        ("{}", "line 1 is no conversation"),
        ("\n", "holds no conversation"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_bad_conversation_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        read("--is_chat_model", "--input_file", str(path))
    assert str(path) in str(caught.value)


def test_missing_conversations_file(tmp_path):
    with pytest.raises(ConfigError, match="none.jsonl cannot be read: No such file"):
        read("--is_chat_model", "--input_file", str(tmp_path / "none.jsonl"))
