"""Decks in a real browser: open from file://, walk through every slide, measure what is shown, take pictures.

Used by ``python -m course_utils.authoring.decks.build --pictures`` and by the browser tests, so that authors see the
same verdicts as the tests.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from course_utils.authoring.contrast import ENOUGH, pale_text
from course_utils.authoring.decks.deck import DeckError

WIDTH, HEIGHT = 1280, 720
MIN_FIGURE_HEIGHT = 260  # px on the 720 px high slide: a figure squeezed below this cannot be read
MIN_CODE_SIZE = 20  # px
LOCAL_SCHEMES = ("file:", "data:", "blob:", "about:")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]

# Shows a slide with its fragments, then waits until it is drawn.
_SHOW = """async number => {
  Reveal.slide(number);
  while (Reveal.availableFragments().next) Reveal.nextFragment();
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""

# Measures the slide on screen. Fragments are shown by then. 2 px of tolerance: rounding of scaled boxes.
_MEASURE = """() => {
  const slide = Reveal.getCurrentSlide();
  const frame = slide.getBoundingClientRect();
  const scale = Reveal.getScale();
  const outside = [];
  for (const element of slide.querySelectorAll('*')) {
    if (element.closest('aside.notes') || element.closest('math') !== null && element.tagName !== 'math') continue;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const over = Math.max(
      frame.left - box.left, frame.top - box.top, box.right - frame.right, box.bottom - frame.bottom);
    const inner = element.scrollWidth - element.clientWidth > 2 && getComputedStyle(element).display !== 'inline';
    if (over / scale > 2 || inner) outside.push(`<${element.localName}> ${element.textContent.trim().slice(0, 40)}`);
  }
  const footer = slide.querySelector('footer')?.getBoundingClientRect();
  const floor = footer?.height ? footer.top : frame.bottom;
  const low = [...slide.children].filter(e => !['FOOTER', 'ASIDE'].includes(e.tagName))
    .filter(e => e.getBoundingClientRect().bottom - floor > 2 * scale)
    .map(e => `<${e.localName}> ${e.textContent.trim().slice(0, 40)} runs into the footer`);
  const prose = [slide, ...slide.querySelectorAll('*')].filter(e => !e.closest('pre, code, math'))
    .flatMap(e => [...e.childNodes].filter(n => n.nodeType === Node.TEXT_NODE));
  return {
    title: slide.querySelector('h1, h2')?.textContent.trim() ?? '',
    outside: [...new Set([...outside, ...low])],
    overflow: [slide.scrollWidth - slide.clientWidth, slide.scrollHeight - slide.clientHeight],
    notes: [...slide.querySelectorAll('aside.notes')].map(n => n.textContent.trim()).join(' ').trim(),
    rawMath: prose.some(n => /\\$\\$|\\\\[a-z]{2,}/.test(n.data)),
    math: slide.querySelectorAll('math').length,
    images: [...slide.querySelectorAll('img')].map(i => ({
      alt: i.alt.trim(), loaded: i.complete && i.naturalWidth > 0, height: i.getBoundingClientRect().height / scale})),
    codeSizes: [...slide.querySelectorAll('pre')].map(p => parseFloat(getComputedStyle(p).fontSize)),
  };
}"""


@dataclass
class Walk:
    """What a walk through one deck saw: ``slides`` holds ``_MEASURE``'s answer for each, in order."""

    slides: list[dict] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One sentence per fault; empty for a deck that can be presented."""
        found = [f"asks the network for {url[:120]}" for url in self.requests if not url.startswith(LOCAL_SCHEMES)]
        found += [f"browser console: {message}" for message in self.console]
        if not 12 <= len(self.slides) <= 20:
            found.append(f"has {len(self.slides)} slides; allowed: 12 to 20")
        for number, slide in enumerate(self.slides, 1):
            found += [f"slide {number} ({slide['title'] or 'no title'}): {fault}" for fault in slide_faults(slide)]
        return found


def slide_faults(slide: dict) -> list[str]:
    """What is wrong with one measured slide."""
    faults = [f"overflows: {what}" for what in slide["outside"][:4]]
    if not faults and max(slide["overflow"]) > 2:
        faults.append("overflows its {}x{} frame by {} x {} px".format(WIDTH, HEIGHT, *slide["overflow"]))
    if not slide["title"]:
        faults.append("has no title (## ...)")
    if not slide["notes"]:
        faults.append("has no speaker notes")
    if slide["rawMath"]:
        faults.append("shows a formula as raw LaTeX")
    faults += [f"has text that is hard to read: {text}; allowed: a contrast of {ENOUGH}" for text in slide["pale"]]
    for image in slide["images"]:
        if not image["alt"]:
            faults.append("has an image without alternative text")
        if not image["loaded"]:
            faults.append("has an image that does not load")
        elif image["height"] < MIN_FIGURE_HEIGHT:
            faults.append(f"squeezes its figure to {image['height']:.0f} px; allowed: {MIN_FIGURE_HEIGHT} or more")
    faults += [f"has code of {size:.0f} px; allowed: 20 or more" for size in slide["codeSizes"] if size < MIN_CODE_SIZE]
    return faults


def find_chromium() -> str | None:
    """The system's Chromium, or ``None``."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator:
    """A headless Chromium (a playwright browser context) with a profile of its own, gone afterwards.

    Raises:
        DeckError: no Chromium on this machine.
    """
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    if executable is None:
        raise DeckError("no browser found; install Debian's chromium (looked for: " + ", ".join(NAMES) + ")")
    with tempfile.TemporaryDirectory(prefix="slides-profile-") as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=FLAGS, viewport={"width": WIDTH, "height": HEIGHT}
        )
        try:
            yield context
        finally:
            context.close()


def open_deck(context, path: Path, walk: Walk):
    """Open a deck from file:// in a new page of ``context``, recording requests and console errors in ``walk``."""
    page = context.new_page()
    # What asks for the network is recorded and refused, so that a deck under test never reaches it.
    page.route(re.compile("^https?://"), lambda route: route.abort())
    page.on("request", lambda request: walk.requests.append(request.url))
    page.on("pageerror", lambda error: walk.console.append(str(error)))
    page.on("console", lambda message: walk.console.append(message.text) if message.type == "error" else None)
    page.goto(path.resolve().as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    return page


def walk(context, path: Path, pictures: Path | None = None) -> Walk:
    """Visit every slide of the deck at ``path`` with its fragments shown and measure it.

    Args:
        context: what ``chromium()`` yields.
        path: the HTML file.
        pictures: folder for one PNG per slide, ``<deck>_<slide>.png``.
    """
    seen = Walk()
    page = open_deck(context, path, seen)
    try:
        for number in range(page.evaluate("Reveal.getTotalSlides()")):
            page.evaluate(_SHOW, number)
            seen.slides.append(page.evaluate(_MEASURE) | {"pale": pale_text(page, "section.present")})
            if pictures:
                page.screenshot(path=pictures / f"{path.stem}_{number + 1:02d}.png")
    finally:
        page.close()
    return seen
