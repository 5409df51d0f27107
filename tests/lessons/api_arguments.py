"""Does every keyword argument that a source gives to the Hugging Face stack exist in the installed version?

``problems(source)`` reads a program's syntax tree, follows imports, attributes, constructed objects and keyword
dictionaries, and compares each call's keywords with the installed signature. It never runs the program. What it cannot
follow it lets pass: running the lessons with deprecations as errors (guard/sitecustomize.py) is the other half.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("transformers", "datasets", "accelerate", "evaluate", "peft")

# Accepted by **kwargs, or still there with a warning: the old name, and what to write today.
OLD_NAMES = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing": "activation_checkpointing in fsdp_config, or model.gradient_checkpointing_enable()",
    "load_in_4bit": "quantization_config",
    "load_in_8bit": "quantization_config",
    "no_cuda": "use_cpu",
    "pad_to_max_length": "padding='max_length'",
    "rope_theta": "rope_parameters",
    "safe_serialization": "nothing: safetensors is the only format",
    "torch_dtype": "dtype",
    "trust_remote_code": "nothing: the course runs no remote code",
    "use_auth_token": "token",
    "warmup_ratio": "warmup_steps below 1",
}
# Names that mean the same thing in every file of the course, where the assignment is out of sight.
USUAL_NAMES = {
    "tokenizer": "transformers.PreTrainedTokenizerFast",
    "trainer": "transformers.Trainer",
    "accelerator": "accelerate.Accelerator",
}
# Methods that only data sets have: checked whatever the object is called.
DATASET_METHODS = {"map", "filter", "save_to_disk", "set_format", "with_format", "to_iterable_dataset", "cast_column"}


@dataclass(frozen=True)
class Instance:
    """An object of class ``kind``."""

    kind: type


def problems(source: str) -> list[str]:
    """Keyword arguments (and imported names) in ``source`` unknown to the installed libraries, a sentence each."""
    checker = _Checker()
    tree = ast.parse(source)
    # Twice: a name may be used, in a function's body, above the line that gives it its meaning.
    checker.collect(tree)
    checker.collect(tree)
    checker.visit(tree)
    return checker.found


class _Checker(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: dict[str, list[Any]] = defaultdict(list)  # what a name may stand for; scopes are not told apart
        self.keywords: dict[str, list[set[str]]] = defaultdict(list)  # keys of dictionaries assigned to a name
        self.assigned: set[str] = set()
        self.found: list[str] = []
        self.expected_to_fail = 0
        self.bases: list[list[Any]] = []

    # --- first pass: what names stand for ---------------------------------------------------------------------------

    def collect(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in LIBRARIES:
                        top = alias.name if alias.asname else alias.name.split(".")[0]
                        self._name(alias.asname or top, [importlib.import_module(top)])
                        importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                self._import_from(node)
            elif isinstance(node, ast.ClassDef):
                own_constructor = any(isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in node.body)
                if not own_constructor:
                    self._name(node.name, [c for base in node.bases for c in self.resolve(base)])
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                self._assign(node.optional_vars, node.context_expr)

    def _import_from(self, node: ast.ImportFrom) -> None:
        library = (node.module or "").split(".")[0]
        if node.level or library not in (*LIBRARIES, "course_utils"):
            return
        for alias in node.names:
            try:
                module = importlib.import_module(node.module)
                value = getattr(module, alias.name, None)
                if value is None:
                    value = importlib.import_module(f"{node.module}.{alias.name}")
            except ImportError:
                if library in LIBRARIES:
                    self._report(node, f"{node.module} has no {alias.name}")
                continue
            self._name(alias.asname or alias.name, [value])

    def _name(self, name: str, values: list[Any]) -> None:
        self.assigned.add(name)
        self.names[name] += [value for value in values if value not in self.names[name]]

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._name(target.id, self.resolve(value))
            keys = self._dictionary(value)
            if keys is not None:
                self.keywords[target.id].append(keys)

    def _dictionary(self, node: ast.expr) -> set[str] | None:
        """Keys of a dictionary display or of ``dict(...)``, as far as they are written down."""
        if isinstance(node, ast.Dict):
            keys = {k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
            inner = [v for k, v in zip(node.keys, node.values, strict=True) if k is None]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            keys = {k.arg for k in node.keywords if k.arg}
            inner = [k.value for k in node.keywords if k.arg is None] + node.args
        elif isinstance(node, ast.Name):
            return set().union(*self.keywords.get(node.id, [set()]))
        else:
            return None
        return keys.union(*(self._dictionary(part) or set() for part in inner))

    # --- what an expression stands for ------------------------------------------------------------------------------

    def resolve(self, node: ast.expr) -> list[Any]:
        """Objects that ``node`` may stand for: modules, classes, functions or ``Instance``; empty if unknown."""
        if isinstance(node, ast.Name):
            if node.id in USUAL_NAMES and node.id not in self.assigned:
                library, kind = USUAL_NAMES[node.id].split(".")
                return [Instance(getattr(importlib.import_module(library), kind))]
            return self.names.get(node.id, [])
        if isinstance(node, ast.Attribute):
            values = [getattr(_kind(value), node.attr, None) for value in self.resolve(node.value)]
            if not values and node.attr in DATASET_METHODS:
                datasets = importlib.import_module("datasets")
                kinds = (datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset)
                values = [getattr(kind, node.attr, None) for kind in kinds]
            return [value for value in values if value is not None]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super":
                return [Instance(base) for base in (self.bases[-1] if self.bases else []) if inspect.isclass(base)]
            return [made for value in self.resolve(node.func) for made in _result(value)]
        return []

    # --- second pass: every call ------------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bases.append([c for base in node.bases for c in self.resolve(base)])
        self.generic_visit(node)
        self.bases.pop()

    def visit_Try(self, node: ast.Try) -> None:
        # A lesson that shows what an old spelling raises catches the TypeError and prints it.
        caught = {n.id for h in node.handlers if h.type for n in ast.walk(h.type) if isinstance(n, ast.Name)}
        self.expected_to_fail += "TypeError" in caught
        for child in node.body:
            self.visit(child)
        self.expected_to_fail -= "TypeError" in caught
        for child in [*node.handlers, *node.orelse, *node.finalbody]:
            self.visit(child)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        callee = node.func
        keywords = [k for k in node.keywords if not (k.arg == "trust_remote_code" and ast.unparse(k.value) == "False")]
        is_partial = isinstance(callee, (ast.Name, ast.Attribute)) and _last(callee) == "partial" and node.args
        if is_partial:
            callee = node.args[0]
        if self.expected_to_fail or not keywords:
            return
        given = set().union(*(({k.arg} if k.arg else self._dictionary(k.value) or set()) for k in keywords))
        if given & {"chunksize", "timeout"} and isinstance(callee, ast.Attribute) and callee.attr == "map":
            return  # the map of a pool of processes or threads
        candidates = [c for c in self.resolve(callee) if _is_theirs(c)]
        complaints = [list(_complaints(candidate, given)) for candidate in candidates]
        # A name may stand for several things; one that takes all the keywords is enough.
        if complaints and all(complaints):
            for complaint in complaints[0]:
                self._report(node, complaint)

    def _report(self, node: ast.AST, text: str) -> None:
        line = f"line {node.lineno}: {text}"
        if line not in self.found:
            self.found.append(line)


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _kind(value: Any) -> Any:
    return value.kind if isinstance(value, Instance) else value


def _is_theirs(value: Any) -> bool:
    module = getattr(_kind(value), "__module__", None) or ""
    return module.split(".")[0] in LIBRARIES


def _result(value: Any) -> list[Any]:
    """What calling ``value`` gives."""
    if inspect.isclass(value):
        return [Instance(value)]
    owner = getattr(value, "__self__", None)
    if inspect.isclass(owner) and value.__name__.startswith("from_"):
        transformers = importlib.import_module("transformers")
        if owner.__name__ == "AutoTokenizer":
            return [Instance(transformers.PreTrainedTokenizerFast)]
        return [Instance(transformers.PreTrainedModel if owner.__name__.startswith("AutoModel") else owner)]
    annotation = getattr(value, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        libraries = [importlib.import_module(name) for name in LIBRARIES]
        annotation = next((getattr(lib, annotation) for lib in libraries if hasattr(lib, annotation)), None)
    return [Instance(annotation)] if inspect.isclass(annotation) else []


@functools.cache
def _parameters(value: Any) -> tuple[frozenset[str], bool] | None:
    """Names that ``value`` takes by keyword, and whether it takes any name; ``None`` if nobody knows."""
    target = value.kind.__call__ if isinstance(value, Instance) else value
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _complaints(value: Any, given: set[str]) -> Iterator[str]:
    known = _parameters(value)
    if known is None:
        return
    names, takes_any = known
    title = getattr(_kind(value), "__qualname__", str(value))
    for name in sorted(given):
        if name in OLD_NAMES and (name not in names or name == "gradient_checkpointing"):
            yield f"{title}({name}=) is the old spelling; today: {OLD_NAMES[name]}"
        elif name not in names and not takes_any:
            yield f"{title}({name}=) does not exist in the installed version"
