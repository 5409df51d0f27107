"""Text of a shell script, character by character: quotes, and the values of variables where they can be known."""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass, field

NAME = re.compile(r"[A-Za-z_]\w*")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg}
OPERATORS |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}


# A part of a text that is one word whatever is in it, spaces, or what stands between.
PIECE = re.compile(r"\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|`[^`]*`|\$\{[^{}]*\}|\s+|[^\s$`]+|.", re.S)


def pieces_of(text: str) -> list[str]:
    """``text`` split at spaces, but not inside what is still to be expanded."""
    words = [""]
    for piece in PIECE.findall(text):
        if piece.isspace():
            words.append("")
        else:
            words[-1] += piece
    return words


def waiting(word: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``names`` that stand in ``word``; all of them where an expansion is left and none can be told."""
    if "$" not in word and "`" not in word:
        return ()
    found = tuple(name for name in names if re.search(rf"\$\{{?{re.escape(name.rpartition(' ')[2])}\b", word))
    if "$(" in word or "`" in word:
        found += tuple(name for name in names if name in ("a command's output", "an open number"))
    return found or names


@dataclass
class Command:
    """One simple command: its words, the assignments before it, its line, and whether only a condition runs it."""

    words: list[str]
    line: int
    variables: dict[str, str] = field(default_factory=dict)
    conditional: bool = False
    background: bool = False


@dataclass
class Script:
    """What ``read`` found."""

    commands: list[Command] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    unclosed: tuple[str, int] | None = None  # what, line
    exported: set[str] = field(default_factory=set)  # names
    exports_all: bool = False  # set -a


class Text:
    """A place in a text that moves on, and the variables seen so far."""

    def __init__(self, text: str, variables: dict[str, str], arrays: dict[str, list[str]] | None = None) -> None:
        self.text, self.place, self.line = text, 0, 1
        self.script = Script(variables=dict(variables))
        self.arrays: dict[str, list[str]] = {} if arrays is None else arrays

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.text[place] if place < len(self.text) else ""

    def take(self) -> str:
        found = self.peek()
        self.place += 1
        self.line += found == "\n"
        return found

    def balanced(self, opening: str, closing: str) -> str:
        """The text from ``opening`` to its partner, both included; quotes inside are respected roughly."""
        begin, line, level = self.place, self.line, 0
        while self.place < len(self.text):
            char = self.take()
            if char == "\\":
                self.take()
            elif char == "'" and opening == "(":
                while self.peek() not in ("'", ""):
                    self.take()
                self.take()
            elif char == opening:
                level += 1
            elif char == closing:
                level -= 1
                if level == 0:
                    return self.text[begin : self.place]
        self.unclosed(opening, line)
        return self.text[begin:]

    def unclosed(self, what: str, line: int) -> None:
        self.script.unclosed = self.script.unclosed or (what, line)

    def single(self) -> str:
        line = self.line
        self.take()
        begin = self.place
        while self.peek() not in ("'", ""):
            self.take()
        if not self.peek():
            self.unclosed("'", line)
        found = self.text[begin : self.place]
        self.take()
        return found

    def double(self) -> list[tuple[str, tuple[str, ...], bool]]:
        self.take()
        return self.quoted()

    def quoted(self) -> list[tuple[str, tuple[str, ...], bool]]:
        """Text up to the closing quote, as (text, names it waits for, False)."""
        line, parts = self.line, []
        while (char := self.peek()) and char != '"':
            if char == "\\" and self.peek(1) in '$`"\\\n':
                self.take()
                following = self.take()
                parts += [] if following == "\n" else [(following, (), False)]
            elif char in "$`":
                parts.append((*self.expansion(), False))
            else:
                parts.append((self.take(), (), False))
        if not char:
            self.unclosed('"', line)
        self.take()
        return parts or [("", (), False)]

    def expansion(self) -> tuple[str, tuple[str, ...]]:
        """The value of what begins with ``$`` or a backtick, and the names it waits for."""
        if self.peek() == "`":
            begin = self.place
            self.take()
            while self.peek() not in ("`", ""):
                self.take()
            self.take()
            return self.text[begin : self.place], ("a command's output",)
        begin = self.place
        self.take()
        char = self.peek()
        if char == "(":
            inner = self.balanced("(", ")")
            if inner.startswith("((") and inner.endswith("))"):
                value = self.arithmetic(inner[2:-2])
                return (value, ()) if value is not None else (f"${inner}", ("an open number",))
            return f"${inner}", ("a command's output",)
        if char == "{":
            return self.braces(self.balanced("{", "}")[1:-1])
        found = NAME.match(self.text, self.place)
        if found:
            self.place = found.end()
            return self.value(found[0])
        if char and char in "@*#?$!-0123456789":
            self.take()
            return self.text[begin : self.place], ("the script's arguments",)
        return "$", ()

    def braces(self, inner: str) -> tuple[str, tuple[str, ...]]:
        found = re.fullmatch(r"(\w+)(:?[-=?+]|\[[@*]\])?(.*)", inner, re.S)
        if not found or not NAME.fullmatch(found[1]):
            return f"${{{inner}}}", ("the script's arguments" if inner[:1] in "@*#0123456789" else inner[:40],)
        name, mark, rest = found.groups()
        if mark in ("[@]", "[*]"):
            items = self.arrays.get(name)
            return (" ".join(items), ()) if items is not None and not rest else (f"${{{inner}}}", (name,))
        if mark in (":-", "-", ":=", "=") and not self.script.variables.get(name):
            inside = Text(f'{rest.replace(chr(34), "")}"', self.script.variables, self.arrays)
            parts = inside.quoted()
            return "".join(text for text, _, _ in parts), tuple(name for _, names, _ in parts for name in names)
        if rest or mark in (":+", "+"):
            return (f"${{{inner}}}", (name,)) if mark not in (":-", "-", ":=", "=", "?", ":?") else self.value(name)
        return self.value(name)

    def value(self, name: str) -> tuple[str, tuple[str, ...]]:
        found = self.script.variables.get(name)
        if found is None:
            return f"${name}", (name,)
        return str(found), getattr(found, "names", ())

    def arithmetic(self, text: str) -> str | None:
        """``$(( ))`` over whole numbers and known variables; None where a name is open or the sum is another one."""

        def known(match: re.Match[str]) -> str:
            value = self.script.variables.get(match[1], "?")
            return value if re.fullmatch(r"-?\d{1,12}", value) else "?"

        text = re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", known, text.strip())
        if not re.fullmatch(r"[\d\s+*/%()-]{1,200}", text):
            return None
        try:
            return str(_sum(ast.parse(re.sub(r"\b0+(?=\d)", "", text.replace("/", "//")), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError, KeyError):
            return None


def _sum(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](_sum(node.operand))
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_sum(node.left), _sum(node.right))
    raise ValueError
