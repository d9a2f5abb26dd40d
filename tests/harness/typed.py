"""Commands as they are typed, for the tests of the grammar."""

from __future__ import annotations

from typing import Any

import pytest

from atb_models.errors import ConfigError

# What stands before and after the part of a command that a test is about.
BOOLQ = ("pa_fp16", "full_BoolQ", "1", "deepseek")
SPEED = ("pa_fp16", "performance", "[[8,4],[4,2]]")
MAXBS = ("pa_fp16", "performance_maxbs", "[[8,4],[4,2]]")


def refusal(parse: Any, *words: str) -> str:
    """The one line with which these words are refused."""
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)
