# SPDX-License-Identifier: Apache-2.0
"""Draw the three charts of a report with Pillow.

A plotting library would be a dependency for these charts alone, and reports would differ where it is not installed.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE, INK, GRID, MISSING = (255, 255, 255), (30, 30, 30), (215, 215, 215), (240, 240, 240)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14))
MARGIN, FONT_SIZE = 14, 13


def heat_map(
    values: np.ndarray, title: str, row_title: str, column_title: str, rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Draw a table of numbers from 0 (white) to 100 (blue); NaN cells are grey.

    Args:
        values: numbers of shape `(rows, columns)`.
        title: title of the chart.
        row_title: word before each row label.
        column_title: title above the column labels.
        rows: row labels.
        columns: column labels.
    """
    width, height = 52, 30
    row_labels = [f"{row_title} {row}" for row in rows]
    left = MARGIN + _width(row_labels) + 8
    top = MARGIN + 52
    image, draw = _canvas(
        max(left + width * len(columns), MARGIN + _width([title])) + MARGIN, top + height * len(rows) + MARGIN, title
    )
    _text(draw, left, MARGIN + 22, column_title)
    for column, label in enumerate(columns):
        _text(draw, left + width * (column + 0.5), top - 10, label, "mm")
    for row, label in enumerate(row_labels):
        y = top + height * row
        _text(draw, left - 8, y + height / 2, label, "rm")
        for column, value in enumerate(values[row]):
            x = left + width * column
            share = 0 if np.isnan(value) else float(np.clip(value / 100, 0, 1))
            colour = tuple(round(light + share * (dark - light)) for light, dark in zip(WHITE, COLOURS[0], strict=True))
            draw.rectangle((x, y, x + width, y + height), fill=MISSING if np.isnan(value) else colour, outline=GRID)
            if not np.isnan(value):
                _text(draw, x + width / 2, y + height / 2, f"{value:.1f}", "mm", WHITE if share > 0.6 else INK)
    return image


def line_chart(series: Mapping[str, Sequence[float]], title: str, x_title: str, ticks: Sequence[str]) -> Image.Image:
    """Draw lines over evenly spaced ticks, on an axis that starts at 0; NaN and negative values are left out.

    Args:
        series: values of each line by name, one per tick.
        title: title of the chart.
        x_title: title of the x axis.
        ticks: labels of the x axis.
    """
    width, height = max(320, 60 * len(ticks)), 220
    left, top = MARGIN + 40, MARGIN + 52
    image, draw = _canvas(max(left + width, MARGIN + _width([title])) + MARGIN, top + height + 50, title)
    known = [value for values in series.values() for value in values if value > 0]
    highest = _round_up(max(known, default=1.0))
    for part in range(5):
        y = top + height * (1 - part / 4)
        draw.line((left, y, left + width, y), fill=GRID)
        _text(draw, left - 6, y, f"{highest * part / 4:g}", "rm")
    positions = [left + width * (index + 0.5) / len(ticks) for index in range(len(ticks))]
    for x, tick in zip(positions, ticks, strict=True):
        _text(draw, x, top + height + 12, tick, "mm")
    _text(draw, left + width / 2, top + height + 32, x_title, "mm")
    legend = left
    for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
        points = [
            (x, top + height * (1 - value / highest)) for x, value in zip(positions, values, strict=True) if value >= 0
        ]
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.rectangle((legend, MARGIN + 26, legend + 10, MARGIN + 36), fill=colour)
        _text(draw, legend + 15, MARGIN + 22, name)
        legend += 30 + _width([name])
    return image


def bar_chart(values: Mapping[str, float], title: str) -> Image.Image:
    """Draw a horizontal bar per name, on an axis that starts at 0; NaN is labelled "not defined".

    Args:
        values: value of each bar by name.
        title: title of the chart.
    """
    length, height = 300, 22
    left, top = MARGIN + _width(values) + 8, MARGIN + 28
    image, draw = _canvas(
        max(left + length + 60, MARGIN + _width([title])) + MARGIN, top + height * len(values) + MARGIN, title
    )
    highest = _round_up(max((value for value in values.values() if value > 0), default=1.0))
    for row, (name, value) in enumerate(values.items()):
        y = top + height * row
        _text(draw, left - 8, y + height / 2, name, "rm")
        end = left + (0 if np.isnan(value) else length * max(value, 0) / highest)
        draw.rectangle((left, y + 3, end, y + height - 4), fill=COLOURS[0])
        _text(draw, end + 6, y + height / 2, "not defined" if np.isnan(value) else f"{value:.1f}", "lm")
    return image


def _canvas(width: float, height: float, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make a white image with a title."""
    image = Image.new("RGB", (round(width), round(height)), WHITE)
    draw = ImageDraw.Draw(image)
    _text(draw, MARGIN, MARGIN, title)
    return image, draw


def _text(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str = "la", colour: tuple[int, int, int] = INK
) -> None:
    """Draw a text; `anchor` is Pillow's code of the point that x and y give."""
    draw.text((x, y), text, fill=colour, font=_font(), anchor=anchor)


def _width(texts: Iterable[str]) -> int:
    """Return the width of the longest text in pixels, 0 without texts."""
    return max((round(_font().getlength(text)) for text in texts), default=0)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the font of all texts."""
    return ImageFont.load_default(FONT_SIZE)


def _round_up(value: float) -> float:
    """Round up to the next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)))
