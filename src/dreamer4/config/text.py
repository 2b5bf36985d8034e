"""The text side of a configuration: files, dotted overrides, and errors told in the user's own keys.

`dreamer4.config` says what a configuration is; this file turns what a person typed into nested mappings for it, and
its complaints back into sentences: the key path, the value received, the rule, and the nearest valid keys.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from dreamer4.errors import InputError, nearest
from dreamer4.files import read_bytes


_MAX_BYTES = 200_000
_MAX_NODES = 20_000  # values of a configuration, those that aliases repeat counted each time

# The rules that pydantic words in terms of Python, in terms of YAML.
_RULES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text, in quotes if it reads as something else",
    "string_too_short": "a name or text that is not empty",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list such as [5, 5]",
    "too_long": "a list such as [5, 5]",
    "missing": "a list such as [5, 5]",
    "finite_number": "a finite number",
    "invalid-json-value": "plain text, numbers, lists and mappings",
    "invalid_key": "keys that are text",
}


def read(path: Path) -> str:
    """Reads a configuration file as text."""
    try:
        data = read_bytes(path, limit=_MAX_BYTES)
    except InputError as error:
        raise InputError(f"{path}: cannot read the configuration file. {error}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8, expected YAML.") from error


def parse(text: str, source: str) -> dict[Any, Any]:
    """Reads a YAML mapping; `source` names the text in errors. An empty text is an empty mapping."""
    tree = _yaml(text, source)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{source}: got {show(tree)}, expected a YAML mapping, with lines such as `seed: 1`.")
    return tree


def assignment(text: str) -> dict[str, Any]:
    """Turns `a.b=c` into `{a: {b: c}}`, with `c` read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"override: got {show(text)}, expected key=value, such as train.dynamics.steps=2000.")
    if parts[0] == "preset":
        raise InputError(f"override: got {show(text)}, but overrides start from a preset. Choose it as the preset.")
    if not value:
        raise InputError(f"override: got {show(text)}, with nothing behind the =. For no value, write {key}=null.")
    tree = _yaml(value, f"override {show(text)}")
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def merge(base: Mapping[Any, Any], update: Mapping[Any, Any]) -> dict[Any, Any]:
    """Lays `update` over `base`: mappings merge key by key, any other value replaces what it meets."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def explain(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Turns one entry of pydantic's `errors()` for the tree `root` into one line."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(path)}: unknown key. {_suggest(path, root)}"
    if error["type"] == "value_error":
        # A rule across branches has no path of its own, and names its keys in full.
        return ": ".join([*([".".join(path)] if path else []), f"{error['ctx']['error']}."])
    rule = _RULES.get(error["type"], error["msg"].removeprefix("Input should be "))
    return f"{'.'.join(path) or 'configuration'}: got {show(error['input'])}, expected {rule}."


def show(value: Any) -> str:
    """Writes a received value in the short form in which YAML would accept it."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _yaml(text: str, source: str) -> Any:
    try:
        nodes = yaml.compose(text, Loader=yaml.SafeLoader)
        if _expanded(nodes, {}) > _MAX_NODES:
            raise InputError(f"{source}: more than {_MAX_NODES} values, aliases counted, which no configuration has.")
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise InputError(f"{source}{where}: not valid YAML ({problem}).") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: not valid YAML (an impossible date or number).") from error
    except RecursionError as error:
        raise InputError(f"{source}: not valid YAML (nested too deeply).") from error
    _refuse_twins(nodes, source)
    return tree


def _expanded(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Returns how many values a node stands for once its aliases are written out: a few lines may mean billions."""
    if id(node) not in known:
        known[id(node)] = 0  # an alias that contains itself is refused later
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = inside if isinstance(node, yaml.MappingNode) else [(value,) for value in inside]
        known[id(node)] = 1 + sum(_expanded(value, known) for pair in pairs for value in pair)
    return known[id(node)]


def _refuse_twins(node: yaml.Node | None, source: str) -> None:
    """Refuses a key given twice in one mapping, of which YAML would silently keep the last."""
    pending, visited = [node], set()
    while pending:
        node = pending.pop()
        # An alias leads to a node for the second time, and may lead a node back to itself.
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            pending.extend(value for _, value in node.value)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"{source}, line {line}: {show(key.value)} is given twice. Keep one.")
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))


def _suggest(path: list[str], root: type[BaseModel]) -> str:
    branch: Any = root
    for part in path[:-1]:
        branch = branch.model_fields[part].annotation
    # `dynamics.width` is more often a forgotten level than a mistyped name.
    inside = [".".join([*path[:-1], key]) for key in _keys(branch) if key.endswith("." + path[-1])]
    return "Did you mean " + " or ".join(inside[:3]) + "?" if inside else nearest(path[-1], branch.model_fields)


def _keys(branch: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in branch.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
