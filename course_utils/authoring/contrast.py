"""Contrast of text as the browser draws it: WCAG 2's ratio for every piece of text on a page.

Luminance and ratio: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio. 4.5 is what level AA asks of text.
"""

from __future__ import annotations

ENOUGH = 4.5

# For every text that is shown: its colour over the colours behind it (partly transparent ones are blended). Formulas
# and disabled controls are left out; pictures cannot be looked into.
PALE_TEXT = """([selector, enough]) => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d',
    {willReadFrequently: true});
  const read = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = read(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const luminance = rgb => rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [], seen = new Set();
  for (const root of document.querySelectorAll(selector)) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.data.trim() || seen.has(element) || element.closest('script, style, math, [disabled]')) continue;
      seen.add(element);
      if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
      const style = getComputedStyle(element), under = behind(element);
      const text = over(read(element.closest('svg') ? style.fill : style.color), under);
      const [light, dark] = [luminance(text), luminance(under)].sort((a, b) => b - a);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < enough) found.push(`${node.data.trim().slice(0, 40)} (${ratio.toFixed(2)})`);
    }
  }
  return found;
}"""


def pale_text(page, selector: str = "body") -> list[str]:
    """What is hard to read below ``selector`` on a playwright ``page``: the text's first words and its ratio."""
    return page.evaluate(PALE_TEXT, [selector, ENOUGH])
