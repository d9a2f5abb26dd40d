"""Both languages of a page say the same, in one set of terms."""

from __future__ import annotations

import re

import pytest

from tests.documents.reading import ROOT, all_documents, chinese, fences, headings, text_of

PAGES = [name for name in all_documents() if not name.endswith(".zh.md")]
ONE_LANGUAGE = ["tests/npu/soft/README.md"]  # for developers
TRANSLATED = [name for name in PAGES if name not in ONE_LANGUAGE]
# What a sentence in Chinese must not say (a regular expression), and what it says instead.
TERMS = {
    "屋顶线(?!模型)": "roofline",
    "死亡": "异常退出",
    "其 README": "说明文档",
    "各词": "位置参数",
    "按名拒绝": "不支持，会直接报错",
    "空机器": "裸机",
    "一份剖析": "性能剖析结果",
    "近期均值": "最近一段时间的均值",
    "KV 缓存": "KV cache",
    "词元": "token",
}
# Commands that fail for everybody: the name is not on PyPI, the program has left huggingface_hub.
USELESS = ("pip install 'atb-models", "pip install atb-models", "huggingface-cli")


def test_every_page_is_in_both_languages() -> None:
    assert [name for name in TRANSLATED if not (ROOT / chinese(name)).exists()] == []
    assert len(TRANSLATED) >= 15


@pytest.mark.parametrize("document", TRANSLATED)
def test_both_languages_have_the_same_parts(document: str) -> None:
    other = chinese(document)
    levels = [[heading.split()[0] for heading in headings(name)] for name in (document, other)]
    assert levels[0] == levels[1]
    for pattern in (r"^\|", r"^[*-] ", r"^\d\. ", r"^ {4,}\S"):
        counts = [len(re.findall(pattern, text_of(name), re.MULTILINE)) for name in (document, other)]
        assert counts[0] == counts[1], pattern
    assert [kind for kind, _ in fences(document)] == [kind for kind, _ in fences(other)]
    assert len(re.findall(r"[\u4e00-\u9fff]", text_of(other))) > 200


@pytest.mark.parametrize("document", TRANSLATED)
def test_both_languages_print_the_same_commands(document: str) -> None:
    """And programs: only remarks and what a program prints are translated."""
    english, other = (
        [re.sub(r"  +# .*", "", code) for kind, code in fences(name) if kind] for name in (document, chinese(document))
    )
    assert english == other


@pytest.mark.parametrize("document", TRANSLATED)
def test_chinese_has_one_word_for_a_thing(document: str) -> None:
    found = {word: better for word, better in TERMS.items() if re.search(word, text_of(chinese(document)))}
    assert found == {}


@pytest.mark.parametrize("document", all_documents())
def test_no_command_that_cannot_work(document: str) -> None:
    assert [command for command in USELESS if command in text_of(document)] == []
