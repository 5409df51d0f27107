"""README's picture, a figure of a lesson from its notebook: ``python -m course_utils.authoring.picture``.

Run it again when the lesson's figure has changed. The picture is reduced to 64 colours, a third of its size; README
shows it with the figure's own alternative text, and a test compares the two.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LESSON, BEGINS = "09_speed_and_memory", "Bars of useful tokens a second against the naive step"
PICTURE = ROOT / ".github" / "readme.png"
_IMAGE = re.compile(r'<img [^>]*alt="([^"]*)" src="data:image/png;base64,([A-Za-z0-9+/=]+)"')


def figures(notebook: Path) -> dict[str, bytes]:
    """Alternative text -> PNG of every figure in a built notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    pages = ["".join(o.get("data", {}).get("text/html", "")) for cell in cells for o in cell.get("outputs", [])]
    return {html.unescape(alt): base64.b64decode(code) for page in pages for alt, code in _IMAGE.findall(page)}


def chosen() -> tuple[str, bytes]:
    """The alternative text and the PNG of README's picture.

    Raises:
        ValueError: the lesson has no such figure any more.
    """
    for alt, png in figures(ROOT / "notebooks" / f"{LESSON}.ipynb").items():
        if alt.startswith(BEGINS):
            return alt, png
    raise ValueError(f"BEGINS={BEGINS!r}: lesson {LESSON} has no such figure; allowed: the beginning of one's text")


def main() -> int:
    from PIL import Image

    alt, png = chosen()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB\nalternative text: {alt}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
