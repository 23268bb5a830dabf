"""The report in a headless browser: phone, desk, print, light, dark; nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import subprocess
from typing import Any

import pytest
from helpers.browser import CHROMIUM, needs_browser
from helpers.drawn_runs import GREY, HOSTILE, grid, make_run, probed, scored, study, tuned

from colorgan.report.page import write_report

pytestmark = needs_browser

# A4 less the page's margins of 14 mm is 182 mm: 688 CSS pixels.
WIDTHS = {"phone": 360, "dark": 360, "desk": 1200, "print": 688}

# The page lets only its own script run: a page around it opens what is folded, measures, clicks.
MEASURE = """
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
const rgb = text => text.match(/[\\d.]+/g).map(Number)
const behind = (e, w) => {
  for (; e; e = e.parentElement) {
    const c = rgb(w.getComputedStyle(e).backgroundColor)
    if (c.length < 4 || c[3] === 1) return c
  }
  return [255, 255, 255]
}
function measure(frame) {
  const d = frame.contentDocument, w = frame.contentWindow
  d.querySelectorAll('details').forEach(each => each.open = true)
  const found = {width: d.documentElement.scrollWidth, images: d.images.length}
  Object.assign(found, {right: 0, contrast: 99, pixels: 99})
  found.broken = [...d.images].filter(i => !i.complete || !i.naturalWidth).length
  const names = w.performance.getEntriesByType('resource').map(e => e.name)
  found.fetched = names.filter(n => !n.startsWith('data:'))
  for (const e of d.querySelectorAll('main *')) {
    if (e.closest('pre')) continue
    found.right = Math.max(found.right, e.getBoundingClientRect().right)
    const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    if (!hasText || e.closest('.scale')) continue
    const style = w.getComputedStyle(e), svg = e.closest('svg')
    const ink = luminance(rgb(svg ? style.fill : style.color))
    const paper = luminance(behind(svg || e, w))
    const contrast = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05)
    if (contrast < found.contrast) {
      [found.contrast, found.faintest] = [contrast, e.outerHTML.slice(0, 80)]
    }
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1
    const pixels = parseFloat(style.fontSize) * scale
    if (pixels < found.pixels) {
      [found.pixels, found.smallest] = [pixels, e.outerHTML.slice(0, 80)]
    }
  }
  return found
}
function use(frame) {
  const d = frame.contentDocument, w = frame.contentWindow, found = {}
  const column = () => [...d.querySelectorAll('#runs tbody tr')].map(r => r.cells[3].textContent)
  d.querySelectorAll('#runs thead th')[3].click()
  found.falling = column()
  d.querySelectorAll('#runs thead th')[3].click()
  found.rising = column()

  const chart = d.querySelector('[data-points]'), area = chart.getBoundingClientRect()
  const middle = {clientX: area.left + area.width / 2, clientY: area.top + area.height / 2}
  chart.dispatchEvent(new w.PointerEvent('pointermove', middle))
  found.tip = chart.querySelector('.tip').textContent
  chart.dispatchEvent(new w.PointerEvent('pointerleave'))
  found.tipHidden = chart.querySelector('.tip').hidden

  const dialog = d.querySelector('dialog'), slider = dialog.querySelector('input')
  d.querySelectorAll('.compare img')[1].click()
  found.open = dialog.open
  found.layers = dialog.querySelectorAll('.stage img').length
  const clips = () => [...dialog.querySelectorAll('.stage img')].map(i => i.style.clipPath)
  found.colored = clips()
  slider.value = 150
  slider.dispatchEvent(new w.Event('input'))
  found.slid = clips()
  dialog.querySelector('button').click()
  found.closed = !dialog.open

  const section = d.querySelector('#speed details')
  section.open = false
  d.querySelector('nav a[href="#speed"]').click()
  found.unfolded = section.open
  found.sticky = w.getComputedStyle(d.querySelector('nav')).position
  return found
}
onload = () => {
  const told = {}
  for (const frame of document.querySelectorAll('iframe')) told[frame.id] = measure(frame)
  told.used = use(document.querySelector('#desk'))
  document.querySelector('#told').textContent = JSON.stringify(told)
}
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what the browser finds in each frame, of a page with everything in it."""
    root = tmp_path_factory.mktemp("browser")
    run = make_run(
        root / HOSTILE.replace("/", "∕"), {"note": HOSTILE, "loss": {"gan": "bce"}}, GREY
    )
    for images in range(10, 110, 10):
        grid(run / "pictures" / f"images-{images:012d}.png", 32, 2, images / 200)
    pairs = [
        tuned(root / f"{name}-{seed}", seed, 0.2, init=name)
        for name in ("scratch", "g/x")
        for seed in (0, 1)
    ]
    coco = scored(
        root / "coco", "classifier", [f"class number {i}" for i in range(80)], 0, {"mAP": 0.2}
    )
    folders = [
        run,
        *pairs,
        study(root / "study", seeds=range(5)),
        coco,
        probed(root / "p", "g", 0, 0.1),
    ]
    page = write_report(folders, root / "out")
    # The page is measured when it has loaded; lazy pictures would be missing then.
    text = page.read_text().replace('loading="lazy"', "")
    copies = {
        "phone": text,
        "desk": text,
        "dark": text.replace("@media (prefers-color-scheme: dark)", "@media all"),
        "print": text.replace("@media print", "@media all"),
    }

    assert len(set(copies.values())) == 3
    for name, copy in copies.items():
        (root / f"{name}.html").write_text(copy)
    frames = [
        f'<iframe id="{name}" src="{name}.html" width={px} height=40000></iframe>'
        for name, px in WIDTHS.items()
    ]
    measure = root / "measure.html"
    measure.write_text(f"<p id=told></p>{''.join(frames)}<script>{MEASURE}</script>")
    words = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
    ]
    words += [
        f"--user-data-dir={root / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        measure.as_uri(),
    ]
    told = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stdout
    found = re.search(r'<p id="told">(\{.*?\})</p>', told)

    assert found, told[-500:]
    measured: dict[str, dict[str, Any]] = json.loads(html.unescape(found[1]))
    return measured


@pytest.mark.parametrize("frame", WIDTHS)
def test_the_page_is_no_wider_than_its_frame_and_whole(
    measured: dict[str, dict[str, Any]], frame: str
) -> None:
    found = measured[frame]
    assert found["width"] <= WIDTHS[frame]
    assert found["images"] > 20
    assert found["broken"] == 0
    assert found["fetched"] == []


def test_on_paper_nothing_is_cut_off(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["print"]["right"] <= WIDTHS["print"] + 1


@pytest.mark.parametrize("frame", WIDTHS)
def test_text_can_be_read(measured: dict[str, dict[str, Any]], frame: str) -> None:
    found = measured[frame]
    assert found["contrast"] >= 4.5, found["faintest"]
    # On paper eighty classes share the width: 4 CSS pixels are a millimeter, sharper than a screen.
    assert found["pixels"] >= (4.0 if frame == "print" else 8.0), found["smallest"]


def test_tables_sort_charts_show_values_and_photos_enlarge(
    measured: dict[str, dict[str, Any]],
) -> None:
    used = measured["used"]

    assert used["falling"] == ["1", "1", "0", "0", "0"]
    assert used["rising"] == ["0", "0", "0", "1", "1"]
    assert "images" in used["tip"] and "pretrained: " in used["tip"]
    assert used["tipHidden"] is True
    assert (used["open"], used["layers"], used["closed"]) == (True, 3, True)
    # The second of three pictures was clicked: the colored one covers the grey one, whole.
    assert [covered(clip) for clip in used["colored"]] == [100, 100, 0]
    assert [covered(clip) for clip in used["slid"]] == [100, 100, 50]


def covered(clip_path: str) -> int:
    """Return how much of a layer shows, in percent, from its CSS `inset`."""
    percent = re.search(r"(\d+)%", clip_path)
    return 100 - int(percent[1]) if percent else 100


def test_contents_stay_and_open_a_folded_section(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["used"]["unfolded"] is True
    assert measured["used"]["sticky"] == "sticky"
