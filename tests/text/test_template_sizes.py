"""A chat template whose numbers ask for gigabytes or minutes is refused at once; reasonable ones count as ever."""

from __future__ import annotations

import re
import time

import pytest

from atb_models.errors import RequestError
from atb_models.text.template import ChatTemplate
from tests.broken.limits import limits

CHAT = [{"role": "user", "content": "hi"}]


def rendered(source: str) -> str:
    return ChatTemplate(source, {}, "the template").render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * messages[0].content }}",
        "{{ [1] * 10**10 }}",
        "{{ 10 ** (10**9) }}",
        "{{ 2 ** (2 ** 62) }}",
        "{{ messages[0].content * 1000000 * 1000000 }}",
        "{% set all = namespace(n=3) %}{% for i in range(40) %}{% set all.n = all.n * all.n %}{% endfor %}{{ all.n }}",
        "{% set all = namespace(s='ab') %}{% for i in range(40) %}{% set all.s = all.s + all.s %}{% endfor %}",
        "{{ '%99999999999d' % 5 }}",
        "{{ '%.99999999999f' % 5 }}",
        "{{ '%(x)-99999999999d' % {'x': 5} }}",
        "{{ '%*d' % (10**10, 5) }}",
        "{{ '%99999999999s' | format('a') }}",
        "{{ '{:>99999999999}'.format('a') }}",
        "{{ '{x:.99999999999f}'.format_map({'x': 1}) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a' | center(99999999999) }}",
        "{{ 'a\\nb' | indent(10**10) }}",
        "{{ 'a'.zfill(10**10) }}",
        "{{ 'a'.ljust(width=10**10) }}",
        "{{ lipsum(n=10**10) }}",
    ],
)
def test_what_would_be_too_large_is_refused(source: str) -> None:
    started = time.process_time()
    with limits(), pytest.raises(RequestError, match=r"^the template .*(too large|beyond \d+)"):
        rendered(source)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '-' * 40 }}", "-" * 40),
        ("{{ 2 * 3.5 }} {{ 7 % 4 }} {{ 2**10 }} {{ 2**-1 }} {{ 2**0.5 > 1 }}", "7.0 3 1024 0.5 True"),
        ("{{ 'Today 20240101: %3d %s%%' % (5, 'x') }}", "Today 20240101:   5 x%"),
        ("{{ '99999999999 {:>3} {}'.format(1, 2) }}", "99999999999   1 2"),
        ("{{ '%s 99999999999' | format('a') }}", "a 99999999999"),
        ("{{ 'a' | center(5) }}|{{ 'a\\nb' | indent(2) }}", "  a  |a\n  b"),
        ("{{ [1, 2] + [3] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }} {{ 1 + 2.5 }}", "[1, 2, 3] (1, 2) ab 3.5"),
        ("{{ range(5) | batch(2) | list | length }} {{ (messages * 2) | length }}", "3 2"),
    ],
)
def test_ordinary_ones_give_what_they_gave(source: str, text: str) -> None:
    assert rendered(source) == text


def test_operations_on_what_has_no_size_are_jinjas_own() -> None:
    with pytest.raises(RequestError, match=re.escape("unsupported operand type(s) for *: 'dict' and 'int'")):
        rendered("{{ {} * 2 }}")
