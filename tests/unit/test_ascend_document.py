"""docs/ascend.md says what the program says, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atb_models import env
from atb_models.engine import npu_setup

SOURCES = ("engine/npu_setup.py", "engine/device.py", "ops/npu.py")
DOCUMENTS = ("docs/ascend.md", "docs/ascend.zh.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_message_and_variable_is_the_programs(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    source = "".join((root / "atb_models" / name).read_text() for name in SOURCES)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    errors = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    messages = [message for cell in errors for message in re.findall("`([^`]+)`", cell)]
    assert len(messages) >= 14
    assert [message for message in messages if message not in source] == []
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text)) <= set(env.TABLE)
    assert all(name in text for name in npu_setup.DEFAULTS)
    assert npu_setup.SET_ENV in text and npu_setup.SET_ENV_NNAL in text


def test_both_languages_have_the_same_parts(root: Path) -> None:
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    for pattern in (r"^#+ ", r"^\| ", r"^ {4,}\S", r"^\d\. ", r"`[^`]+`"):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern
