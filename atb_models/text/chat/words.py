"""What a chat template reads of a conversation, so that what it would pass over in silence is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jinja2 import nodes

MESSAGES = "messages"
WHOLE = {"tojson", "items", "dictsort", "list", "string", "pprint", "xmlattr"}  # filters that show a message as it is
METHODS = {"items", "values", "keys"}
KINDS = {"string", "iterable", "sequence", "mapping"}  # tests by which a text is told from a list of parts


@dataclass(frozen=True)
class TemplateWords:
    """keys: texts and attributes that it spells out. names: of its variables. roles: texts that it compares with.

    any_key, any_role: it shows messages, or their roles, as they are. takes_parts: it looks into a content that is a
    list. walks_parts: it goes through the parts of such a one.
    """

    keys: frozenset[str]
    names: frozenset[str]
    roles: frozenset[str]
    any_key: bool
    any_role: bool
    takes_parts: bool
    walks_parts: bool


def words_of(template: nodes.Template) -> TemplateWords:
    """What a parsed template reads."""
    attributes = {node.attr for node in template.find_all(nodes.Getattr)}
    is_content, tests = _is_value_of(template, "content"), template.find_all(nodes.Test)
    loops = template.find_all(nodes.For)
    walks_parts = any(is_content(part) for loop in loops for part in _self_and_below(loop.iter))
    return TemplateWords(
        keys=frozenset(attributes | _texts(template)),
        names=frozenset(node.name for node in template.find_all(nodes.Name) if node.ctx == "load"),
        roles=frozenset().union(*map(_texts, _compared(template))),
        any_key=_shows_messages(template),
        any_role=_shows(template, "role") or _shows_messages(template),
        takes_parts=walks_parts or any(test.name in KINDS and is_content(test.node) for test in tests),
        walks_parts=walks_parts,
    )


def _texts(node: nodes.Node) -> set[str]:
    return {
        part.value for part in _self_and_below(node) if isinstance(part, nodes.Const) and isinstance(part.value, str)
    }


def _compared(template: nodes.Template) -> Iterator[nodes.Node]:
    """What values are compared with, the value itself left out where it is `x['key']`: operands, arguments, keys."""
    operands: list[nodes.Node] = [pair.key for pair in template.find_all(nodes.Pair)]
    for compare in template.find_all(nodes.Compare):
        operands += [compare.expr, *(operand.expr for operand in compare.ops)]
    for call in (*template.find_all(nodes.Test), *template.find_all(nodes.Filter)):
        operands += call.args
    return (part for part in operands if isinstance(part, (nodes.Const, nodes.List, nodes.Tuple)))


def _reads(node: nodes.Node, key: str) -> bool:
    """Whether it is `x.key`, `x['key']` or `x.get('key')`."""
    if isinstance(node, nodes.Getattr):
        return node.attr == key
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == key
    if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Getattr) or node.node.attr != "get":
        return False
    return bool(node.args) and isinstance(node.args[0], nodes.Const) and node.args[0].value == key


def _shows(node: nodes.Node, key: str) -> bool:
    """Whether the value of the key is used otherwise than to compare it with something."""
    if isinstance(node, (nodes.Compare, nodes.Test)):
        return False
    return _reads(node, key) or any(_shows(child, key) for child in node.iter_child_nodes())


def _is_value_of(template: nodes.Template, key: str) -> Callable[[nodes.Node], bool]:
    """Tells the nodes that are the value of the key, or a variable that is set to it."""
    names = {
        node.target.name
        for node in template.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and any(_reads(part, key) for part in _self_and_below(node.node))
    }
    return lambda node: _reads(node, key) or (isinstance(node, nodes.Name) and node.name in names)


def _shows_messages(template: nodes.Template) -> bool:
    """Whether a message, or the list of them, is shown or walked through as it is."""
    names = {MESSAGES}
    for loop in template.find_all(nodes.For):
        targets = [loop.target] if isinstance(loop.target, nodes.Name) else []
        if any(isinstance(part, nodes.Name) and part.name in names for part in _self_and_below(loop.iter)):
            names |= {target.name for target in targets}
    filters = [node.node for node in template.find_all(nodes.Filter) if node.name in WHOLE]
    methods = [node.node for node in template.find_all(nodes.Getattr) if node.attr in METHODS]
    return any(isinstance(node, nodes.Name) and node.name in names for node in (*filters, *methods))


def _self_and_below(node: nodes.Node) -> list[nodes.Node]:
    return [node, *node.find_all(nodes.Node)]
