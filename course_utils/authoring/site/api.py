"""Reference pages of course_utils, made from its docstrings: a page per package, a section per module."""

from __future__ import annotations

from pathlib import Path

from course_utils.authoring.decks.deck import ROOT

PACKAGE = ROOT / "course_utils"
LEFT_OUT = ("lessons", "authoring")  # figures and solutions of lessons, what authors run
# Programs and files that another program imports: they have a command line, or run on import, instead of functions.
NOT_IMPORTED = ("__main__", "sitecustomize", "rank_main")


def modules() -> dict[str, list[str]]:
    """Package -> its modules, the package itself first, as they are imported."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] in LEFT_OUT or parts[-1] in NOT_IMPORTED or not _is_package(path.parent):
            continue
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        found.setdefault(package, [])
        found[package].insert(0 if name == package else len(found[package]), name)
    return found


def _is_package(folder: Path) -> bool:
    """True where every folder up to course_utils has an ``__init__.py``."""
    return all((above / "__init__.py").exists() for above in (folder, *folder.parents) if above.is_relative_to(PACKAGE))


def page(package: str, names: list[str]) -> str:
    """The reStructuredText page of one package."""
    parts = [_title(package, "=")]
    for name in names:
        if name != package:
            parts.append(_title(name.removeprefix(f"{package}."), "-"))
        parts.append(f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n   :member-order: bysource\n")
    return "\n".join(parts)


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def index(packages: list[str]) -> str:
    """The page that lists the packages."""
    files = "\n".join(f"   {package}" for package in packages)
    text = (
        "What lessons, decks and launch files call, from the docstrings. ``teach.show_source`` shows the code itself."
    )
    return f"{_title('Reference: course_utils', '=')}\n{text}\n\n.. toctree::\n   :maxdepth: 1\n\n{files}\n"
