"""A small reader of PromQL: enough to say that an expression can be parsed, and which metrics and labels it names."""

import re
from dataclasses import dataclass, field

FUNCTIONS = {
    "absent",
    "avg_over_time",
    "max_over_time",
    "min_over_time",
    "rate",
    "increase",
    "time",
    "clamp_min",
    "round",
}
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk", "bottomk"}
OPERATORS = {"+", "-", "*", "/", "%", "==", "!=", ">", "<", ">=", "<=", "and", "or", "unless"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![a-z0-9]))|(?P<duration>\d+[smhdwy])|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"|(?P<text>\"[^\"]*\")|(?P<mark>==|!=|=~|!~|>=|<=|[-+*/%<>(){}\[\],=]))"
)


class PromqlError(ValueError):
    """The expression cannot be parsed."""


@dataclass
class Named:
    """What an expression names: metrics with the labels that it asks of them."""

    metrics: dict[str, set[str]] = field(default_factory=dict)


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise PromqlError(f"what is {text[at : at + 20]!r}?")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind]))
            at = match.end()
        self.at, self.named = 0, Named()

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "", kind: str = "") -> str:
        if self.at >= len(self.tokens):
            raise PromqlError("it ends too soon")
        found_kind, found = self.tokens[self.at]
        if (wanted and found != wanted) or (kind and found_kind != kind):
            raise PromqlError(f"{wanted or kind} expected, not {found!r}")
        self.at += 1
        return found

    def expression(self) -> None:
        self.operand()
        while self.peek() in OPERATORS:
            self.take()
            self.operand()

    def operand(self) -> None:
        kind, token = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if token == "(":
            self.take()
            self.expression()
            self.take(")")
        elif kind in ("number", "text"):
            self.take()
        elif kind == "name" and token in FUNCTIONS | AGGREGATIONS:
            self.call(token)
        elif kind == "name" and token not in OPERATORS:
            self.selector()
        else:
            raise PromqlError(f"an operand expected, not {token!r}")

    def call(self, name: str) -> None:
        self.take()
        if name in AGGREGATIONS and self.peek() in ("by", "without"):
            self.take()
            self.listed()
        self.take("(")
        while self.peek() != ")":
            self.expression()
            if self.peek() != ")":
                self.take(",")
        self.take(")")

    def listed(self) -> None:
        self.take("(")
        while self.peek() != ")":
            self.take(kind="name")
            if self.peek() != ")":
                self.take(",")
        self.take(")")

    def selector(self) -> None:
        labels = self.named.metrics.setdefault(self.take(kind="name"), set())
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                labels.add(self.take(kind="name"))
                if self.take(kind="mark") not in ("=", "!=", "=~", "!~"):
                    raise PromqlError("a label is compared by =, !=, =~ or !~")
                self.take(kind="text")
                if self.peek() != "}":
                    self.take(",")
            self.take("}")
        if self.peek() == "[":
            self.take()
            self.take(kind="duration")
            self.take("]")


def promql_read(text: str) -> Named:
    """Parse an expression. Raises PromqlError."""
    reader = _Reader(text)
    reader.expression()
    if reader.at != len(reader.tokens):
        raise PromqlError(f"{reader.peek()!r} is too much")
    return reader.named
