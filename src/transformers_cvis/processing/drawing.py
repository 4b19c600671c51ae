# SPDX-License-Identifier: Apache-2.0
"""Drawing of tracks onto frames: tinted masks with contours, labels with scores, one colour for each track."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..rle import decode
from .tracks import Track

_GOLDEN_RATIO = 0.618033988749895
_Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def track_colour(track_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a track, 0..255: a function of its number alone, far apart for neighbouring numbers."""
    hue = (0.58 + track_id * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.80, 1.0), (0.60, 0.95), (0.95, 0.80))[track_id % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_tracks(
    frame: np.ndarray, tracks: Sequence[Track], frame_index: int, opacity: float = 0.4, labels: bool = True
) -> np.ndarray:
    """Draw the tracks that are visible in a frame.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
        tracks (`Sequence[Track]`): tracks of the video; those of higher score are drawn on top.
        frame_index (`int`): number of the frame in the tracks' segmentations.
        opacity (`float`, defaults to 0.4): share of the mask's colour in the object's pixels, in 0..1.
        labels (`bool`): also write label and score.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8: a copy of the frame with the tracks.

    Raises:
        ValueError: a mask is of another size than the frame.
    """
    visible = [track for track in tracks if _is_visible(track, frame_index)]
    visible.sort(key=lambda track: track.score)
    frame = frame.copy()
    thickness = max(1, round(min(frame.shape[:2]) / 240))
    for track in visible:
        segmentation = track.segmentations[frame_index]
        if tuple(segmentation["size"]) != frame.shape[:2]:
            raise ValueError(
                f"The mask of {track} is of size {tuple(segmentation['size'])}, the frame of size {frame.shape[:2]}."
            )
        _tint(frame, decode(segmentation), track.boxes[frame_index], track.query_id, opacity, thickness)
    return _write_labels(frame, visible[::-1], frame_index) if labels and visible else frame


def contact_sheet(
    frames: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    tile_width: int = 320,
) -> Image.Image:
    """Put frames of one size next to each other into one image.

    Args:
        frames (`Sequence[np.ndarray]`): uint8 RGB `(height, width, 3)`, already annotated.
        captions (`Sequence[str]`, *optional*): one line below each frame.
        columns (`int`, *optional*): tiles in a row; about as many rows as columns by default.
        tile_width (`int`, defaults to 320): width of a tile, in pixels; a frame is enlarged at most twice.

    Returns:
        `PIL.Image.Image`: the sheet, RGB.

    Raises:
        ValueError: no frame is given, or the captions are not one for each frame.
    """
    if not len(frames):
        raise ValueError("A contact sheet needs at least one frame.")
    if captions is not None and len(captions) != len(frames):
        raise ValueError(f"Got {len(captions)} captions for {len(frames)} frames.")
    columns = columns or int(np.ceil(np.sqrt(len(frames))))
    rows = -(-len(frames) // columns)
    height, width = frames[0].shape[:2]
    tile_width = min(tile_width, 2 * width)
    tile_height = max(1, round(height * tile_width / width))
    gap, font = 6, _font(13)
    caption_height = 18 if captions is not None else 0
    sheet = Image.new(
        "RGB", (gap + columns * (tile_width + gap), gap + rows * (tile_height + caption_height + gap)), (24, 24, 24)
    )
    draw = ImageDraw.Draw(sheet)
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        x, y = gap + column * (tile_width + gap), gap + row * (tile_height + caption_height + gap)
        sheet.paste(Image.fromarray(frame).resize((tile_width, tile_height), Image.Resampling.LANCZOS), (x, y))
        if captions is not None:
            draw.text((x + 2, y + tile_height + 2), captions[index], fill=(220, 220, 220), font=font)
    return sheet


def _is_visible(track: Track, frame_index: int) -> bool:
    """Return whether the mask has pixels. Results from files may hold an empty mask for an absent object."""
    segmentation, box = track.segmentations[frame_index], track.boxes[frame_index]
    return segmentation is not None and box[2] > box[0] and box[3] > box[1]


def _tint(frame: np.ndarray, mask: np.ndarray, box: _Box, track_id: int, opacity: float, thickness: int) -> None:
    """Blend the track's colour into `frame`, in place, and draw the mask's inner contour."""
    height, width = mask.shape
    x0, y0, x1, y1 = (int(edge) for edge in box)
    around = np.s_[
        max(0, y0 - thickness) : min(height, y1 + thickness), max(0, x0 - thickness) : min(width, x1 + thickness)
    ]
    inside, region = mask[around], frame[around]
    colour = np.array(track_colour(track_id), dtype=np.float32)
    region[inside] = np.rint(region[inside] * (1 - opacity) + colour * opacity).astype(np.uint8)
    # Pixels outside the frame count as object, so that no contour runs along the frame's edge.
    core = ndimage.binary_erosion(inside, iterations=thickness, border_value=1)
    region[inside & ~core] = colour.astype(np.uint8)


def _write_labels(frame: np.ndarray, tracks: Sequence[Track], frame_index: int) -> np.ndarray:
    """Label each track at its box, best first, within the frame and without covering another label."""
    height, width = frame.shape[:2]
    font = _font(int(np.clip(round(min(height, width) / 26), 10, 36)))
    margin = max(1, round(font.size / 6))
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    taken: list[_Box] = []
    for track in tracks:
        text = _fitting_text(track, font, width - 2 * margin)
        left, top, right, bottom = font.getbbox(text)
        # Measure a tall letter and one with a tail, so that all labels are of one height.
        _, top, _, bottom = font.getbbox("Ag")
        label_width, label_height = right - left + 2 * margin, bottom - top + 2 * margin
        x, y = _free_place(track.boxes[frame_index], label_width, label_height, (height, width), taken)
        taken.append((x, y, x + label_width, y + label_height))
        colour = track_colour(track.query_id)
        draw.rectangle((x, y, x + label_width - 1, y + label_height - 1), fill=colour)
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (0, 0, 0) if luminance > 120 else (255, 255, 255)
        draw.text((x + margin - left, y + margin - top), text, fill=ink, font=font)
    return np.array(image)


def _fitting_text(track: Track, font: _Font, width: int) -> str:
    """Return label and score, or as much of the label as fits."""
    text = f"{track.label} {track.score:.2f}"
    if font.getlength(text) <= width:
        return text
    label = track.label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…" if label != track.label else label


def _free_place(
    box: _Box, width: int, height: int, frame_size: tuple[int, int], taken: Sequence[_Box]
) -> tuple[int, int]:
    """Return the top left corner of a label: above the box, or else inside a large box, below it or anywhere."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    above, below, inside = y0 - height, y1, (y0, y1 - height)
    heights = (above, *inside, below) if y1 - y0 > 3 * height else (above, below, *inside)
    for left in (x0, x1 - width):
        for top in heights:
            place = (left, top)
            if _within(place, width, height, frame_size) and not _overlaps(place, width, height, taken):
                return place
    left = max(0, min(x0, frame_size[1] - width))
    highest = max(0, frame_size[0] - height)
    start = max(0, min(y0 - height, highest))
    for top in [*range(start, highest + 1, max(1, height // 2)), *range(start, -1, -max(1, height // 2))]:
        if not _overlaps((left, top), width, height, taken):
            return left, top
    return left, start


def _within(place: tuple[int, int], width: int, height: int, frame_size: tuple[int, int]) -> bool:
    left, top = place
    return min(left, top) >= 0 and left + width <= frame_size[1] and top + height <= frame_size[0]


def _overlaps(place: tuple[int, int], width: int, height: int, taken: Sequence[_Box]) -> bool:
    x, y = place
    return any(x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in taken)


@lru_cache
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)
