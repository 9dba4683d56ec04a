"""The market as a picture: providers on a circle, what they delegate to each other, and what they own.

Size = work ahead, colour = SLO attainment, ring = stake, arrows = requests at peers, bars = credits.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.wwwserve.scene import Scene

WIDTH, HEIGHT = 960, 640
FINE = 2
"""Drawn so many times larger and scaled down: smooth edges."""
CENTRE, RADIUS = (300.0, 352.0), 205.0
BARS = 620.0
"""Left edge of the credit bars."""
PAPER, INK, FAINT, GREY = (250, 250, 247), (38, 40, 46), (150, 152, 158), (205, 206, 210)
BAD, FAIR, GOOD = (201, 64, 54), (232, 184, 58), (58, 148, 92)
RING, FLOW = (62, 84, 168), (118, 128, 156)
PARTS = {"credit": (96, 125, 190), "stake": RING, "escrow": (196, 150, 92), "unbonding": (170, 174, 198)}
MOST_BARS = 24

Colour = tuple[int, int, int]


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size * FINE)


class _Sheet:
    """A drawing in units of the finished picture."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None, width: float = 0) -> None:
        box = [(x - radius) * FINE, (y - radius) * FINE, (x + radius) * FINE, (y + radius) * FINE]
        self._draw.ellipse(box, fill=fill, outline=outline, width=round(width * FINE))

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        self._draw.line([(x * FINE, y * FINE) for x, y in points], fill=colour, width=max(1, round(width * FINE)), joint="curve")

    def area(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(x * FINE, y * FINE) for x, y in points], fill=colour)

    def bar(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        if width > 0.0:
            self._draw.rectangle([x * FINE, y * FINE, (x + width) * FINE, (y + height) * FINE], fill=colour)

    def text(self, x: float, y: float, words: str, size: int = 13, colour: Colour = INK, anchor: str = "lm") -> None:
        self._draw.text((x * FINE, y * FINE), words, fill=colour, font=_font(size), anchor=anchor)


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw a network: (640, 960, 3) uint8."""
    sheet = _Sheet()
    places = _places(len(scene.online))
    sizes = _sizes(scene)
    _head(sheet, scene)
    for origin, executor in np.argwhere(scene.flows).tolist():
        _arrow(sheet, places[origin], places[executor], sizes[origin], sizes[executor], int(scene.flows[origin, executor]))
    for p, place in enumerate(places):
        _provider(sheet, scene, p, place, sizes[p])
    _bars(sheet, scene)
    _legend(sheet)
    return np.asarray(sheet.image.reduce(FINE))


def _places(count: int) -> list[tuple[float, float]]:
    angles = [2 * math.pi * p / count - math.pi / 2 for p in range(count)]
    return [(CENTRE[0] + RADIUS * math.cos(angle), CENTRE[1] + RADIUS * math.sin(angle)) for angle in angles]


def _sizes(scene: Scene) -> list[float]:
    room = min(1.0, 2 * math.pi * RADIUS / (110.0 * len(scene.online)))
    return [room * (13.0 + 30.0 * float(load)) for load in scene.load]


def _head(sheet: _Sheet, scene: Scene) -> None:
    mean = "-" if math.isnan(scene.market_attainment) else f"{scene.market_attainment:.0%}"
    sheet.text(28, 32, f"{scene.title}", 22)
    sheet.text(28, 58, f"{scene.now_s:g} of {scene.horizon_s:g} s", 13, FAINT)
    sheet.text(572, 32, f"{mean}", 22, INK, "rm")
    sheet.text(572, 58, "attained, of the latest requests", 13, FAINT, "rm")
    sheet.bar(28, 74, 544, 3, GREY)
    sheet.bar(28, 74, 544 * min(scene.now_s / scene.horizon_s, 1.0), 3, INK)


def _blend(share: float) -> Colour:
    """Red at 0, amber at 0.7, green at 1: attainment below 70 % is bad."""
    low, high, way = (BAD, FAIR, share / 0.7) if share < 0.7 else (FAIR, GOOD, (share - 0.7) / 0.3)
    red, green, blue = (round(a + (b - a) * way) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _provider(sheet: _Sheet, scene: Scene, p: int, place: tuple[float, float], size: float) -> None:
    x, y = place
    out = (x - CENTRE[0]) / RADIUS, (y - CENTRE[1]) / RADIUS
    if not scene.online[p]:
        sheet.disc(x, y, 13, PAPER, GREY, 2)
        sheet.line([(x - 6, y - 6), (x + 6, y + 6)], FAINT, 2)
        sheet.line([(x - 6, y + 6), (x + 6, y - 6)], FAINT, 2)
    else:
        stakes = scene.credits["stake"]
        ring = 8.0 * float(stakes[p] / max(stakes.max(), 1e-9))
        share = float(scene.attainment[p])
        if ring > 0.3:
            sheet.disc(x, y, size + 2 + ring, RING)
        sheet.disc(x, y, size + 2, PAPER)
        sheet.disc(x, y, size, GREY if math.isnan(share) else _blend(share))
        if size >= 12:
            busy = int(scene.running[p] + scene.waiting[p])
            light = math.isnan(share) or share >= 0.5
            sheet.text(x, y, str(busy), 13, INK if light else PAPER, "mm")
    if len(scene.online) <= MOST_BARS:
        away = size + 24 if scene.online[p] else 30
        sheet.text(x + out[0] * away, y + out[1] * away, str(p), 13, INK if scene.online[p] else FAINT, "mm")


def _arrow(sheet: _Sheet, start: tuple[float, float], end: tuple[float, float], gap: float, end_gap: float, count: int) -> None:
    """Draw a curve that bends to the right of its way, so that two directions stand apart."""
    way = np.subtract(end, start)
    side = np.array([-way[1], way[0]])
    knee = np.add(start, end) / 2 + 0.16 * side
    steps = np.linspace(0.0, 1.0, 48)[:, None]
    curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * knee + steps**2 * end
    from_start, to_end = np.hypot(*(curve - start).T), np.hypot(*(curve - end).T)
    curve = curve[(from_start > gap + 12) & (to_end > end_gap + 18)]
    if len(curve) < 2:
        return
    width = min(1.0 + 0.9 * math.sqrt(count), 8.0)
    sheet.line([(float(x), float(y)) for x, y in curve], FLOW, width)
    ahead = (curve[-1] - curve[-2]) / max(float(np.hypot(*(curve[-1] - curve[-2]))), 1e-9)
    across = np.array([-ahead[1], ahead[0]]) * (3.0 + width)
    corners = [curve[-1] + across, curve[-1] - across, curve[-1] + ahead * (7.0 + 1.5 * width)]
    sheet.area([(float(x), float(y)) for x, y in corners], FLOW)


def _bars(sheet: _Sheet, scene: Scene) -> None:
    wealth = scene.credits["wealth"]
    sheet.text(BARS, 32, "credits", 22)
    shown = min(len(wealth), MOST_BARS)
    more = f", first {shown} of {len(wealth)} providers" if shown < len(wealth) else ""
    sheet.text(BARS, 58, f"{wealth.sum():,.0f} in all{more}", 13, FAINT)
    step = min(46.0, 440.0 / shown)
    scale = 230.0 / max(float(wealth.max()), 1e-9)
    for p in range(shown):
        y = 92.0 + step * p
        sheet.text(BARS, y + 0.3 * step, str(p), 13, INK if scene.online[p] else FAINT)
        x = BARS + 28
        for name, colour in PARTS.items():
            width = scale * float(scene.credits[name][p])
            sheet.bar(x, y, width, 0.6 * step, colour if scene.online[p] else GREY)
            x += width
        sheet.text(x + 8, y + 0.3 * step, f"{wealth[p]:,.0f}", 12, FAINT)


def _legend(sheet: _Sheet) -> None:
    x = BARS
    for name, colour in PARTS.items():
        sheet.bar(x, 566, 11, 11, colour)
        sheet.text(x + 17, 572, name, 12, FAINT)
        x += 36 + 7.2 * len(name)
    sheet.text(BARS, 594, "disc: work ahead, requests in it; ring: stake; arrow: requests at a peer", 10, FAINT)
    for i in range(60):
        sheet.bar(BARS + 3 * i, 608, 3, 10, _blend(i / 59))
    sheet.text(BARS + 190, 613, "SLO attainment 0 to 100 %", 11, FAINT)
