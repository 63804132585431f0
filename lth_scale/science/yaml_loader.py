"""A YAML loader without the surprises of YAML 1.1."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml

from lth_scale.config.errors import BadInput

MOST_CHARACTERS = 30  # of a number
TAG = "tag:yaml.org,2002:"
# How YAML 1.2 and people write integers, floats and booleans.
PLAIN = (
    r"[-+]?(0|[1-9]\d*)|[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?"
    r"|[-+]?\.(?i:inf)|\.(?i:nan)|(?i:true|false)"
)


class PlainLoader(yaml.SafeLoader):
    """Load plain values that mean what they look like, and each key once.

    Aliases are refused, because a few of them can stand for more than fits in memory, and so are
    numbers, booleans and dates that only YAML 1.1 reads as such (`010`, `yes`, `2:4`). Raises
    BadInput with the line, or a YAMLError.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Raises BadInput for an alias."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event().anchor
            raise BadInput(f"*{alias}: aliases are not supported; write out the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Raises BadInput for a duplicate key and for `<<`."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == f"{TAG}merge":
                _refuse(key, "<<: merging keys is not supported; write them out")
            name = key.value if isinstance(key, yaml.ScalarNode) else "a key"
            if name in first:
                _refuse(key, f"{name}: duplicate key, first in line {first[name]}; remove one")
            first[name] = line(key)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A number, boolean or date. Raises BadInput unless it is written as in PLAIN."""
        text = node.value
        if len(text) > MOST_CHARACTERS:
            _refuse(
                node,
                f"{text[:MOST_CHARACTERS]}…: a number of {len(text)} characters; "
                f"use at most {MOST_CHARACTERS}",
            )
        value = CONSTRUCTORS[node.tag](self, node)
        if not re.fullmatch(PLAIN, text, re.ASCII):
            decimal = [str(int(text))] if text.isdigit() else []
            spellings = dict.fromkeys([*decimal, json.dumps(value, default=str), f'"{text}"'])
            _refuse(
                node,
                f"{text}: ambiguous: YAML 1.1 reads it as {value}; "
                f"write one of {', '.join(spellings)}",
            )
        return value


CONSTRUCTORS = {
    f"{TAG}int": yaml.SafeLoader.construct_yaml_int,
    f"{TAG}float": yaml.SafeLoader.construct_yaml_float,
    f"{TAG}bool": yaml.SafeLoader.construct_yaml_bool,
    f"{TAG}timestamp": yaml.SafeLoader.construct_yaml_timestamp,
}
for tag in CONSTRUCTORS:
    PlainLoader.add_constructor(tag, PlainLoader.construct_plain)


def load_yaml(text: str) -> tuple[Any, Mapping[str, int]]:
    """The document in `text`, and the line of each of its top-level keys.

    Raises BadInput or a YAMLError.
    """
    loader = PlainLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None, {}
    keys = node.value if isinstance(node, yaml.MappingNode) else ()
    lines = {str(key.value): line(key) for key, _ in keys}
    return loader.construct_document(node), lines


def line(node: yaml.Node) -> int:
    """The line in which a node begins, from 1."""
    return node.start_mark.line + 1


def _refuse(node: yaml.Node, why: str) -> NoReturn:
    raise BadInput(f"line {line(node)}: {why}")
