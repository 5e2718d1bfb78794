"""Runs a chat template, which is a program by a stranger, with no more power and work than a template needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from types import BuiltinMethodType, GeneratorType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Jinja's sandbox guards the machine, not its time and memory. All work is therefore counted, in characters handled:
# a budget rather than a clock, so that a template fails on every machine or on none. Real templates take under a
# hundred times the characters of a conversation.
_BUDGET = 300_000_000
_LARGEST_OPERATION = 20_000_000  # characters that one operation may produce
_LARGEST_NUMBER = 100_000  # given as an argument, where it may be a width or a count; as Jinja's MAX_RANGE
_LARGEST_INDENT = 16
_LARGEST_SOURCE = 500_000
_TURN = 300  # of a loop, or a call: what Python spends on it, in characters
_PART = 50  # of a list, likewise

# What can return more than its arguments hold together. No other method of Python's strings, numbers, lists can.
_MULTIPLYING = frozenset(
    (
        "center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "to_bytes", "translate",
        "zfill",
    )
)  # fmt: skip
_CONSTANT_FILTERS = frozenset(["count", "d", "default", "first", "last", "length"])
_ABSENT_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")  # for web pages, and slow on odd input


class TemplateLimitError(TemplateError):
    """A template asked for more work than any honest one needs."""


class SandboxedTemplate:
    """A compiled template. Not for several threads at once."""

    def __init__(self, source: str) -> None:
        """Compile; raises jinja2.TemplateError and whatever else a broken template makes Python raise."""
        if len(source) > _LARGEST_SOURCE:
            raise TemplateLimitError(f"it is {len(source)} characters long; at most {_LARGEST_SOURCE} are accepted")
        self._environment = _Environment(len(source))
        tree = self._environment.parse(source)
        _insert_metering(tree)
        tree.set_environment(self._environment)
        code = self._environment.compile(tree)
        self._template = Template.from_code(self._environment, code, self._environment.make_globals(None))
        self.literals = tuple(_literals(self._environment.parse(source)))

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises jinja2.TemplateError (TemplateLimitError for too much work) and whatever else the template does."""
        self._environment.meter = _Meter(self._environment.step)
        return self._template.render(variables)


class _Meter:
    """Counts the work of one rendering."""

    def __init__(self, step: int) -> None:
        self._left = _BUDGET
        self._step = step
        self._sizes: dict[int, tuple[Any, int]] = {}  # of containers, which are kept so that their ids stay theirs

    def spend(self, characters: int) -> None:
        if characters > _LARGEST_OPERATION:
            raise TemplateLimitError("it builds texts that are far too long")
        self._left -= characters
        if self._left < 0:
            raise TemplateLimitError("it does far too much work")

    def step(self) -> None:
        """One turn of a loop or call of a macro, which may write all literal text of the template."""
        self.spend(self._step)

    def size(self, value: Any) -> int:
        """Characters of a value written out, at least 1. A container's parts are counted each time they occur."""
        if isinstance(value, (str, bytes)):
            return len(value) + 1
        if isinstance(value, int):
            return value.bit_length() // 3 + 1
        if isinstance(value, range):
            return 2 * _PART * len(value) + 1
        if not isinstance(value, (list, tuple, dict)):
            return 8
        if id(value) not in self._sizes:
            parts = value.items() if isinstance(value, dict) else value
            self._sizes[id(value)] = value, 1 + sum(_PART + self.size(part) for part in parts)
        return self._sizes[id(value)][1]

    def spend_sum(self, arguments: Iterable[Any]) -> None:
        """Pay for an operation whose result is at most as long as its arguments together."""
        self.spend(sum(map(self.size, arguments)))

    def spend_product(self, arguments: Iterable[Any], format_text: Any = "") -> None:
        """Pay for an operation whose result is at most the product of its two largest arguments: padding, joining,
        replacing, repeating. A number counts as itself; ``format_text`` has widths within it."""
        widths = map(int, re.findall(r"\d{1,12}", format_text)) if isinstance(format_text, str) else ()
        factors = sorted((*map(self._factor, arguments), *widths, 1, 1), reverse=True)
        self.spend(factors[0] * factors[1])

    def _factor(self, value: Any) -> int:
        if not isinstance(value, int):
            return self.size(value)
        if value > _LARGEST_NUMBER:
            raise TemplateLimitError(f"it uses {value} as a width or a count")
        return max(value, 1)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up for chat templates (utils/chat_template_utils.py), metered."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, step: int) -> None:
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.step = _TURN + step
        self.meter = _Meter(self.step)
        self.filters["tojson"] = _tojson
        usable = {name: function for name, function in self.filters.items() if name not in _ABSENT_FILTERS}
        self.filters = {name: self._metered(name, function) for name, function in usable.items()}
        self.filters["_written"] = self._written
        self.filters["_counted"] = self._counted
        self.globals["raise_exception"] = _raise_exception
        # The type itself would let a template call dict.update on what it was given.
        self.globals["dict"] = lambda *arguments, **names: dict(*arguments, **names)
        del self.globals["lipsum"]

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays before it works."""
        if name in _CONSTANT_FILTERS:
            return function
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own argument

        @wraps(function)
        def metered(*arguments: Any, **names: Any) -> Any:
            given = [list(value) if isinstance(value, GeneratorType) else value for value in arguments]
            piped = [str(value) if isinstance(value, int) else value for value in given[first : first + 1]]
            format_text = piped[0] if name == "format" and piped else ""
            self.meter.spend_product([*piped, *given[first + 1 :], *names.values()], format_text)
            return function(*given, **names)

        return metered

    def _written(self, value: Any) -> Any:
        """Pay for a value that is about to be written or joined with ``~``."""
        self.meter.spend(self.meter.size(value))
        return value

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """Pay for each turn of a loop."""
        for value in values:
            self.meter.step()
            yield value

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **names: Any) -> Any:  # noqa: N805
        """Pay for a call. The doubled names are Jinja's: any keyword must pass through."""
        meter = __self.meter
        given = [list(value) if isinstance(value, GeneratorType) else value for value in arguments]
        values = [*given, *names.values()]
        if not isinstance(__obj, BuiltinMethodType):
            meter.step()
        elif __obj.__name__ in _MULTIPLYING:
            meter.spend(_TURN)
            meter.spend_product([__obj.__self__, *values])
        else:
            meter.spend(_TURN)
            meter.spend_sum([__obj.__self__, *values] if isinstance(__obj.__self__, str) else values)
        return super().call(__context, __obj, *given, **names)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Pay for str.format, which the sandbox replaces by a function of its own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered(*arguments: Any, **names: Any) -> str:
            self.meter.spend_product([value.__self__, *arguments, *names.values()], value.__self__)
            return wrapped(*arguments, **names)

        return metered

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for an operation whose result can be longer than its operands."""
        if operator == "**":
            self.meter.spend_product([str(left) if isinstance(left, int) else left, right])
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            self.meter.spend(self.meter.size(left) * self.meter.size(right))
        elif operator == "+":
            self.meter.spend_sum([left, right])
        elif operator == "*":
            self.meter.spend_product([left, right])
        else:
            self.meter.spend_product([left, *(right if isinstance(right, tuple) else [right])], left)
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}``, which marks the model's own words for training; here it only writes its body."""

    tags = {"generation"}  # noqa: RUF012 (the name and type are Jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _insert_metering(tree: nodes.Template) -> None:
    """Pass what loops run over, and what is written or joined, through the counting filters."""

    def through(name: str, value: nodes.Node) -> nodes.Filter:
        return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)

    for loop in list(tree.find_all(nodes.For)):
        loop.iter = through("_counted", loop.iter)
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [
            node if isinstance(node, nodes.TemplateData) else through("_written", node) for node in output.nodes
        ]
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [through("_written", node) for node in joined.nodes]


def _literals(tree: nodes.Template) -> Iterator[str]:
    """The texts that the template itself holds."""
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: Jinja's own escapes HTML."""
    if indent is not None and (not isinstance(indent, int) or indent > _LARGEST_INDENT):
        raise TemplateLimitError(f"it indents JSON by {str(indent)[:20]!r}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
