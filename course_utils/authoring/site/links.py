"""Every link of a built site, followed: each file is there, and each anchor is in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ADDRESSES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src", "iframe": "src"}


class _Page(HTMLParser):
    """What a page has and asks for: ``ids``, ``links`` (what a reader clicks), ``loads`` (what the browser fetches)."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids |= {value for key in ("id", "name") if (value := values.get(key))}
        if (address := values.get(_ADDRESSES.get(tag, ""))) is not None:
            (self.links if tag == "a" else self.loads).append(address)


def problems(site: Path) -> list[str]:
    """One sentence per fault of the HTML files below ``site``: a missing file, a missing anchor, a load from elsewhere.

    Links to other sites are not followed: there may be no network. Decks carry their own check (``decks.browser``),
    so of their pages only the links count.
    """
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]  # the theme's own templates
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in files}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for address in dict.fromkeys(page.links + page.loads):
            if fault := _fault(address, path, pages, is_load=address in page.loads):
                found.append(f"{name}: {fault}")
    for path in sorted(site.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        elsewhere = re.findall(r"""(?:url\(|@import )\s*["']?((?:https?:)?//[^"')\s]+)""", text)
        found += [f"{path.relative_to(site)}: loads {address} from elsewhere" for address in elsewhere]
    return found


def _fault(address: str, page: Path, pages: dict[Path, _Page], is_load: bool) -> str:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        outside = is_load and parts.scheme != "data"
        return f"loads {address[:100]} from elsewhere" if outside else ""
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return f"leads to {address}, which is not there"
    anchor = unquote(parts.fragment)
    is_state = "slides" in target.parts or not anchor  # #/3 is a slide's number
    if target in pages and not is_state and anchor not in pages[target].ids:
        return f"leads to {address}: the page has no such anchor"
    return ""
