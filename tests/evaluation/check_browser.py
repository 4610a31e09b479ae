"""The report in a browser, by `make browser-check`: nothing wrong in the console, cut, or on top of something else.

A script that is added to a copy of the page measures it and writes what it found into the document.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from bge_runtime.evaluation.report import write_report
from tests.evaluation.pages import comparison, judgements

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --virtual-time-budget=3000"
).split()
MEASURE = """
<script>
const found = [];
const box = (element) => element.getBoundingClientRect();
const page = document.documentElement;
if (page.scrollWidth > window.innerWidth) found.push(`page is ${page.scrollWidth} wide in ${window.innerWidth}`);
// What a picture draws beyond its axes is clipped; its words are looked at below.
for (const element of document.querySelectorAll("body *:not(svg *)")) {
  const place = box(element);
  if (place.width && place.right > window.innerWidth + 1) found.push(`cut: ${element.outerHTML.slice(0, 80)}`);
}
const axes = [];
for (const svg of document.querySelectorAll("svg")) {
  const texts = [...svg.querySelectorAll("text")].filter((each) => each.textContent.trim());
  axes.push(texts.filter((each) => /[a-z]{3}/i.test(each.textContent)).length);
  const frame = box(svg);
  texts.forEach((text, at) => {
    const one = box(text);
    const sides = [frame.left - one.left, one.right - frame.right, frame.top - one.top, one.bottom - frame.bottom];
    if (Math.max(...sides) > 1)
      found.push(`cut in ${svg.getAttribute("aria-label")}: ${text.textContent}`);
    texts.slice(at + 1).forEach((other) => {
      const two = box(other);
      const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
      const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
      if (wide > 2 && high > 3) found.push(`${text.textContent} on ${other.textContent}`);
    });
  });
}
const cells = [...document.querySelectorAll("td")].map((cell) => [cell, box(cell)]);
cells.forEach(([cell, one], at) => cells.slice(at + 1, at + 12).forEach(([other, two]) => {
  const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
  const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
  if (wide > 2 && high > 2) found.push(`cells overlap: ${cell.textContent} on ${other.textContent}`);
}));
const result = document.createElement("pre");
result.id = "measured";
result.textContent = JSON.stringify({ found, axes, width: window.innerWidth });
document.body.append(result);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def check_the_page_is_whole(tmp_path, width):
    page = write_report(tmp_path, comparison(), judgements(), command="bge eval made --compare bits=float32,binary")
    copy = tmp_path / "measured.html"
    copy.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    frame = tmp_path / "frame.html"
    # A window is never narrower than 500 pixels: a frame is.
    frame.write_text(
        f'<body style="margin:0"><iframe src="measured.html" style="border:0;width:{width}px;height:3000px" '
        "onload=\"document.title = this.contentDocument.getElementById('measured').textContent\"></iframe></body>"
    )
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files"]
    shown = subprocess.run(
        [*command, "--window-size=1400,3000", "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=100
    )
    title = re.search(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)
    assert title is not None, shown.stderr[-2000:]
    measured = json.loads(html.unescape(title[1]))
    assert measured["width"] == width
    assert measured["found"] == []
    assert all(labels >= 2 for labels in measured["axes"]), measured["axes"]
    assert "CONSOLE" not in shown.stderr
