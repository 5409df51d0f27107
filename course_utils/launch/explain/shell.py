"""Shell text read without executing it: simple commands, with the variables that can be known put in.

What only a run could tell (``$(...)``, what the caller or SLURM sets) stays as it is written, marked as open. No
program is started, and nothing is evaluated but whole-number arithmetic.
"""

from __future__ import annotations

import re

from course_utils.launch.explain.reading import Open
from course_utils.launch.explain.shell_text import NAME, Command, Script, Text, pieces_of, waiting

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)
PLAIN = re.compile(r"""[^\s;&|<>()\\'"$`=]+""")  # of a word: nothing to be done about it
OPENING = {"if", "for", "while", "until", "case", "select", "{"}
CLOSING = {"fi", "done", "esac", "}"}
BETWEEN = {"then", "else", "elif", "do", "!", "time", "in"}
DECLARING = {"export", "declare", "local", "readonly", "typeset", "set"}
MOST_WORDS = 20_000


class _Reader(Text):
    def __init__(self, text: str, variables: dict[str, str]) -> None:
        super().__init__(text, variables)
        self.depth = 0
        self.words: list[str] = []
        self.raw: list[bool] = []  # whether a word is as written: no quotes, no expansion
        self.start = 1
        self.heredocs: list[str] = []
        self.skip = 0  # words of redirections still to drop

    def read(self) -> Script:
        while self.place < len(self.text) and len(self.script.commands) < MOST_WORDS:
            char = self.peek()
            if char in " \t\r" or (char == "\\" and self.peek(1) == "\n"):
                self.take()
                if char == "\\":
                    self.take()
            elif char == "#":
                while self.peek() not in ("\n", ""):
                    self.take()
            elif char in "\n;&|()":
                self.separator()
            elif char in "<>":
                self.redirection()
            else:
                self.word()
        self.end()
        return self.script

    def separator(self) -> None:
        char = self.take()
        if char == "&" and self.peek() == ">":
            self.redirection()
            return
        background = char == "&" and self.peek() != "&"
        self.end(background)
        if char in "&|;" and self.peek() == char:
            self.take()
        if char == "\n" and self.heredocs:
            for mark in self.heredocs:
                while self.place < len(self.text):
                    end = self.text.find("\n", self.place)
                    end = len(self.text) if end < 0 else end
                    line = self.text[self.place : end]
                    self.place, self.line = end + 1, self.line + 1
                    if line.strip() == mark:
                        break
            self.heredocs = []

    def redirection(self) -> None:
        if self.words and self.raw[-1] and self.words[-1].isdigit() and self.text[self.place - 1].isdigit():
            self.words.pop()
            self.raw.pop()
        mark = self.take()
        while self.peek() in "<>&" and self.peek():
            mark += self.take()
        if mark in ("<<",) or mark == "<<-":
            while self.peek() in " \t-" and self.peek():
                self.take()
            found = re.match(r"""['"\\]?(\w+)['"]?""", self.text[self.place :])
            if found:
                self.place += found.end()
                self.heredocs.append(found[1])
        elif self.peek() == "(":
            self.balanced("(", ")")
        else:
            self.skip = 1

    def word(self) -> None:
        """One word, which becomes none, one or several after expansion."""
        if not self.words:
            self.start = self.line
        parts: list[tuple[str, tuple[str, ...], bool]] = []  # text, names it waits for, may be split
        quoted, plain = False, True
        while (char := self.peek()) and char not in " \t\r\n;&|<>()":
            if char == "\\":
                self.take()
                following = self.take()
                parts += [] if following == "\n" else [(following, (), False)]
                plain = False
            elif char == "'":
                quoted, plain = True, False
                parts.append((self.single(), (), False))
            elif char == '"':
                quoted, plain = True, False
                if (splice := re.match(r'"\$\{(\w+)\[@\]\}"', self.text[self.place :])) and splice[1] in self.arrays:
                    self.place += splice.end()
                    for item in self.arrays[splice[1]]:
                        self.add(item, False)
                    if self.peek() in " \t\r\n;&|" or not self.peek():
                        return
                    continue
                parts += self.double()
            elif char == "$" or char == "`":
                plain = False
                parts.append((*self.expansion(), True))
            elif run := PLAIN.match(self.text, self.place):
                self.place = run.end()
                parts.append((run[0], (), False))
            else:
                parts.append((self.take(), (), False))
                if char == "=" and self.peek() == "(":  # joined only here: a word may be long
                    text = "".join(part[0] for part in parts)
                    if NAME.fullmatch(text.rstrip("=+")):
                        self.array(text)
                        return
        if self.peek() == "(" and len(parts) and plain and not self.words:  # a function's name
            self.take()
            if self.peek() == ")":
                self.take()
            return
        self.fields(parts, quoted, plain)

    def array(self, text: str) -> None:
        name, adds = text.rstrip("=+"), text.endswith("+=")
        outer = self.words, self.raw, self.script.commands, self.start, self.depth
        self.words, self.raw, self.script.commands = [], [], []
        self.take()
        line = self.line
        while (char := self.peek()) and char != ")":
            if char in " \t\r\n" or (char == "\\" and self.peek(1) == "\n"):
                self.take()
            elif char == "#":
                while self.peek() not in ("\n", ""):
                    self.take()
            elif char in ";&|<>(":
                self.take()
            else:
                self.word()
        if not self.peek():
            self.unclosed("(", line)
        self.take()
        found = self.words
        self.words, self.raw, self.script.commands, self.start, self.depth = outer
        self.arrays[name] = (self.arrays.get(name, []) if adds else []) + found
        self.script.variables[name] = found[0] if found else ""

    def fields(self, parts: list[tuple[str, tuple[str, ...], bool]], quoted: bool, plain: bool) -> None:
        """Split what unquoted variables brought at its spaces, as the shell does, but not in an assignment."""
        head = "".join(text for text, _, _ in parts)
        is_assignment = bool(ASSIGNMENT.match(head)) and all(ASSIGNMENT.match(word) for word in self.words)
        fields: list[tuple[str, tuple[str, ...]]] = [("", ())]
        for text, names, may_split in parts:
            pieces = pieces_of(text) if may_split and not is_assignment else [text]
            waits = [waiting(piece, names) for piece in pieces] if len(pieces) > 1 else [names]
            fields[-1] = (fields[-1][0] + pieces[0], fields[-1][1] + waits[0])
            fields += list(zip(pieces[1:], waits[1:], strict=True))
        for text, names in fields:
            if text or quoted:
                self.add(Open(text, names) if names else text, plain)

    def add(self, word: str, plain: bool) -> None:
        if self.skip:
            self.skip -= 1
        elif len(self.words) < MOST_WORDS:
            self.words.append(word)
            self.raw.append(plain)

    def end(self, background: bool = False) -> None:
        """Close the current command: note it, or its assignments."""
        words, raw, self.words, self.raw, self.skip = self.words, self.raw, [], [], 0
        while words and raw[0] and str(words[0]) in OPENING | CLOSING | BETWEEN:
            word = str(words[0])
            self.depth = max(0, self.depth + (word in OPENING) - (word in CLOSING))
            if word in ("for", "select", "case") and len(words) > 1:
                self.script.variables[str(words[1])] = Open(f"${words[1]}", (str(words[1]),))
                return
            words, raw = words[1:], raw[1:]
        command = Command(words, self.start, conditional=self.depth > 0, background=background)
        while words and (found := ASSIGNMENT.match(words[0])):
            command.variables[found[1]] = self.assigned(words[0], found)
            words.pop(0)
        if not words or str(words[0]) in DECLARING:
            if words[:1] == ["export"] or (words and words[0] in ("declare", "typeset") and "-x" in words):
                self.script.exported |= {str(word).partition("=")[0].rstrip("+") for word in words[1:]}
            self.script.exports_all |= words[:1] == ["set"] and bool({"-a", "allexport"} & set(words))
            for word in words[1:]:
                if found := ASSIGNMENT.match(word):
                    command.variables[found[1]] = self.assigned(word, found)
            for name, value in command.variables.items():
                changed = self.depth > 0 and self.script.variables.get(name, value) != value
                self.script.variables[name] = Open(f"${name}", (name,)) if changed else value
        if words or command.variables:
            self.script.commands.append(command)

    def assigned(self, word: str, found: re.Match[str]) -> str:
        value = self.script.variables.get(found[1], "") + found[3] if found[2] else found[3]
        names = getattr(word, "names", ()) + (
            getattr(self.script.variables.get(found[1]), "names", ()) if found[2] else ()
        )
        return Open(value, names) if names else value


def read(text: str, variables: dict[str, str] | None = None) -> Script:
    """The simple commands of a shell script, in their order."""
    return _Reader(text, variables or {}).read()
