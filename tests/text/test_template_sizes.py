"""A chat template whose numbers ask for gigabytes or minutes is refused at once; reasonable ones count as ever."""

from __future__ import annotations

import re
import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atb_models.errors import RequestError
from atb_models.text.chat.environment import make_environment
from atb_models.text.chat.template import ChatTemplate
from tests.broken.limits import limits

CHAT = [{"role": "user", "content": "hi"}]
LARGE = "{% set s = 'a' * 1000000 %}"
LOOP = "{% set all = namespace(s='ab') %}{% for i in range(40) %}"
KEPT = "{% set all = namespace(s='a' * 4000000, l=[]) %}{% for i in range(1000) %}{% set all.l = all.l + ["
END = "] %}{% endfor %}"


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
        "{{ lipsum(1000000) }}",
        # texts joined
        LOOP + "{% set all.s = all.s ~ all.s %}{% endfor %}",
        LARGE + "{{ s ~ s ~ s ~ s ~ s ~ s ~ s ~ s ~ s }}",
        LARGE + "{{ ([s] * 1000) | join }}",
        LARGE + "{{ (range(100000) | join(s)) | length }}",
        LARGE + "{{ ''.join([s] * 1000) | length }}",
        LARGE + "{{ s.join(range(1000) | map('string')) | length }}",
        # replaced
        LARGE + "{{ s.replace('a', s) | length }}",
        LARGE + "{{ s | replace('a', 'b' * 1000) | length }}",
        LARGE + "{{ s | replace('', 'b' * 1000) | length }}",
        LARGE + "{{ s.translate({97: s}) | length }}",
        # formats
        "{{ '{:{w}}'.format('a', w='300000000') }}",
        "{{ '{:{w}}'.format('a', w=300000000) }}",
        "{{ '{x:{w}}'.format_map({'x': 'a', 'w': '300000000'}) }}",
        "{{ ('{:5000000}' * 100).format(*range(100)) }}",
        "{{ ('{0:5000000}' * 1000).format('a') }}",
        "{{ ('%5000000d' * 100) % (range(100) | list) }}",
        "{{ ('%(x)5000000s' * 1000) % {'x': 1} }}",
        "{{ '{:0000000000000000000000000300000000}'.format(5) }}",
        LARGE + "{{ ('{0}' * 1000).format(s) }}",
        LARGE + "{{ ('%(s)s' * 1000) % {'s': s} }}",
        LARGE + "{{ ('%(s)s' * 1000) | format(s=s) }}",
        LARGE + "{{ '{0!r}'.format([s] * 1000) }}",
        "{{ ('%(x)5000000s'.encode() * 1000) % {'x'.encode(): 1} }}",
        # indents and widths
        LARGE + "{{ ('\t' * 1000000).expandtabs(300) | length }}",
        "{{ ('a\n' * 100000) | indent(3000000) }}",
        "{{ ('a\u2028' * 100000) | indent('b' * 3000000) }}",
        "{{ range(1000) | list | tojson(indent=3000000) }}",
        "{{ range(1000) | list | tojson(indent='b' * 3000000) }}",
        LARGE + "{{ range(1000) | list | tojson(separators=(s, ':')) }}",
        LARGE + "{{ {s: range(10000) | list} | pprint }}",
        LARGE + "{{ s | wordwrap(1, wrapstring='b' * 1000) | length }}",
        "{{ 1 | round(10**9, 'floor') }}",
        "{{ ('a' * 8000000) | sort | length }}",
        "{{ (5).to_bytes(10**10, 'big') | length }}",
        # collections as text
        LARGE + "{{ [s] * 1000 }}",
        LARGE + "{{ ([s] * 1000) | string | length }}",
        LARGE + "{{ ([s] * 1000) | tojson | length }}",
        LARGE + "{{ ([s] * 1000) ~ '' }}",
        LARGE + "{{ {'a': [s] * 1000}.values() }}",
        LARGE + "{{ namespace(a=[s] * 1000) }}",
        LARGE + "{{ ([[s] * 1000] * 1000) | upper | length }}",
        LARGE + "{{ raise_exception([s] * 1000) }}",
        LARGE + "{{ strftime_now(s) }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
        "{{ ([[1] * 1000000] * 1000) | sum(start=[]) | length }}",
        # what is written
        LARGE + "{% for i in range(100000) %}{{ s }}{% endfor %}",
        LARGE + "{% set t %}{% for i in range(1000) %}{{ s }}{% endfor %}{% endset %}",
        LARGE + "{% macro m() %}{% for i in range(1000) %}{{ s }}{% endfor %}{% endmacro %}{{ m() | length }}",
        LARGE + "{% filter upper %}{% for i in range(1000) %}{{ s }}{% endfor %}{% endfilter %}",
        # many texts, none of them too large
        KEPT + "all.s ~ i" + END,
        KEPT + "all.s + 'b'" + END,
        KEPT + "all.s[1:]" + END,
        KEPT + "all.s.upper()" + END,
        KEPT + "all.s | upper" + END,
        KEPT + "all.s * 2" + END,
        KEPT + "all.s.split('a')" + END,
        KEPT + "'%s%d' % (all.s, i)" + END,
        KEPT + "'{}{}'.format(all.s, i)" + END,
        "{{ range(100000) | map('center', 5000000) | list | length }}",
        "{% macro m(i) %}{{ 'a' * 5000000 ~ i }}{% endmacro %}{% set all = namespace(l=[]) %}{% for i in range(1000) %}"
        "{% set all.l = all.l + [m(i)] %}{% endfor %}",
        "{% macro m() %}{% for i in range(100000) %}{{ ['a' * 5000000] }}{% endfor %}{% endmacro %}{{ m() }}",
        "{{ ('你' * 8000000) | batch(1) | list | length }}",
    ],
)
def test_what_would_be_too_large_is_refused(source: str) -> None:
    started = time.process_time()
    with limits(), pytest.raises(RequestError, match=r"^the template .*too large"):
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
        # large numbers that ask for no size
        ("{{ dict(created=1700000000) }}", "{'created': 1700000000}"),
        ("{% set n = namespace(t=1700000000) %}{{ n.t }}", "1700000000"),
        ("{% macro day(t) %}{{ t // 86400 }}{% endmacro %}{{ day(1700000000) }} {{ day(t=0) }}", "19675 0"),
        ("{{ '{}'.format(1700000000) }} {{ '{t}'.format(t=1700000000) }}", "1700000000 1700000000"),
        ("{{ '{:d} 99999999}'.format(3) }}", None),
        ("{{ '{:d} 99999999}}'.format(3) }} {{ '{{99999999}}'.format() }}", "3 99999999} {99999999}"),
        ("{{ '{99999999}'.format_map({'99999999': 1}) }}", None),
        ("{{ '%s-%s*' % (1700000000, 'x') }} {{ '%d * %s' % (1700000000, 3) }}", "1700000000-x* 1700000000 * 3"),
        ("{{ '%s %% *' | format(1700000000) }} {{ '%*d' % (4, 1700000000) }}", "1700000000 % * 1700000000"),
        ("{{ [1700000000] | map('string') | join }} {{ 1700000000 | default(1) }}", "1700000000 1700000000"),
        ("{{ 'a'.find('a', 0, 99999999999) }} {{ 'ab' | truncate(99999999999) }}", "0 ab"),
        ("{{ 'aaa'.replace('a', 'b', 99999999999) }} {{ [1] | batch(99999999999) | list }}", "bbb [[1]]"),
        ("{{ {'id': 1700000000}.get('id', 99999999999) }}", "1700000000"),
        (
            "{{ cycler(1700000000, 2).next() }} {{ range(1700000000, 1700000002) | list }}",
            "1700000000 [1700000000, 1700000001]",
        ),
        # the rest of what is measured
        ("{{ 'a' ~ 1 ~ none ~ [2] }} {{ ('a' | e) ~ '<' }}", "a1None[2] a<"),
        (
            "{% set b = '<b>' | safe %}{% autoescape true %}{{ 'a' ~ '<' }}{{ b ~ '<' }}{% endautoescape %}",
            "a&lt;<b>&lt;",
        ),
        ("{{ '<{}>'.format('&') }} {{ ('<{}>' | safe).format('&') }}", "<&> <&amp;>"),
        ("{{ '%(a)s %(b)5.1f' % {'a': 'x', 'b': 2} }} {{ '%(a(b))s' % {'a(b)': 1} }}", "x   2.0 1"),
        ("{{ '{0:>{1}} {0!r} {x[k]}'.format('a', 3, x={'k': 'v'}) }}", "  a 'a' v"),
        ("{{ 'a\tb'.expandtabs(4) }} {{ ','.join(['a', 'b']) }} {{ 'ab'.translate({97: 'x'}) }}", "a   b a,b xb"),
        ("{{ messages | map(attribute='content') | join(', ') }} {{ ['b', 'a'] | sort | join }}", "hi ab"),
        ("{{ messages | join(',', attribute='role') }} {{ {'b': 1} | tojson(indent=1) }}", 'user {\n "b": 1\n}'),
        ("{{ [[1], [2]] | sum(start=[]) }} {{ [1, 2] | sum }} {{ 2.345 | round(2) }}", "[1, 2] 3 2.35"),
        ("{{ {'a': ['b' * 60, 'c' * 60]} | pprint }}", "{'a': ['" + "b" * 60 + "',\n       '" + "c" * 60 + "']}"),
        ("{{ 'abc'[1:] }} {{ messages[:1] | length }} {{ 'abc'[::-1] }}", "bc 1 cba"),
        ("{{ lipsum(n=1, html=false, min=2, max=3).endswith('.') }} {{ 'a b' | wordwrap(1) }}", "True a\nb"),
        ("{% for m in messages %}{{ m | items | list }}{% endfor %}", "[('role', 'user'), ('content', 'hi')]"),
    ],
)
def test_ordinary_ones_give_what_they_gave(source: str, text: str | None) -> None:
    """What Jinja's own sandbox gives, or the error that it raises (None)."""
    theirs = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    if text is None:
        with pytest.raises((IndexError, KeyError, TypeError, ValueError)) as refusal:
            theirs.from_string(source).render(messages=CHAT)
        with pytest.raises(RequestError, match=re.escape(str(refusal.value))):
            rendered(source)
        return
    if "tojson" not in source:  # ours leaves <, > and & as they are
        assert theirs.from_string(source).render(messages=CHAT) == text
    assert rendered(source) == text


def test_a_long_conversation_is_rendered_whatever_the_template_does_with_it() -> None:
    chat = [{"role": "user", "content": "some words " * 50} for _ in range(1000)]
    source = (
        "{% set all = namespace(s='') %}{% for m in messages %}{% set all.s = all.s ~ m.content.strip() ~ '\n' %}"
        "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 1000 %}{% endif %}"
        "{{ m.get('content') | trim }}\n{% endfor %}{{ all.s | length }}"
    )
    text = ChatTemplate(source, {}, "the template").render(chat)
    said = chat[0]["content"].strip()
    assert text == (said + "\n") * 1000 + str(1000 * (len(said) + 1))


@pytest.mark.parametrize("form", ["%(" * 100_000, "%" * 100_001, "%(a" * 100_000, "{" * 100_001, "%-" * 100_000 + "("])
def test_a_format_of_any_form_is_read_once(form: str) -> None:
    started = time.process_time()
    for source in ("{{ f % 1 }}", "{{ f % {'a': 1} }}", "{{ f | format(1) }}", "{{ f.format(1) }}"):
        try:
            ChatTemplate(source, {}, "the template").render(CHAT, f=form)
        except RequestError:
            pass  # Python refuses most of them
    assert time.process_time() - started < 2


def test_no_filter_can_be_added_without_a_bound() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        make_environment().filters["more"] = str


def test_operations_on_what_has_no_size_are_jinjas_own() -> None:
    with pytest.raises(RequestError, match=re.escape("unsupported operand type(s) for *: 'dict' and 'int'")):
        rendered("{{ {} * 2 }}")
