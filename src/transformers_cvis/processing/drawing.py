"""Tracks drawn onto frames: tinted masks with contours, labels with scores, one colour per track."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..rle import decode
from .tracks import Track

_GOLDEN_RATIO = 0.618033988749895


def track_colour(track_id: int) -> tuple[int, int, int]:
    """The RGB colour, 0..255, of a track: a function of its number alone, far apart for neighbouring numbers."""
    hue = (0.58 + track_id * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.80, 1.0), (0.60, 0.95), (0.95, 0.80))[track_id % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_tracks(
    frame: np.ndarray, tracks: Sequence[Track], frame_index: int, opacity: float = 0.4, labels: bool = True
) -> np.ndarray:
    """A copy of a frame with the tracks that are visible in it.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`, uint8): RGB.
        tracks (`Sequence[Track]`): the better ones come out on top.
        frame_index (`int`): which of the tracks' segmentations belongs to the frame.
        opacity (`float`, defaults to 0.4): how much of the mask's colour covers the object, in 0..1.
        labels (`bool`): also write label and score.
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
    """Frames of one size side by side as one image.

    Args:
        frames: uint8 RGB `(height, width, 3)`, already annotated.
        captions (`Sequence[str]`, *optional*): one line below each frame.
        columns (`int`, *optional*): tiles in a row; about as many rows as columns by default.
        tile_width (`int`, defaults to 320): width of a tile in pixels; smaller frames are not enlarged beyond twice.
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
    """Whether the mask has pixels; results read from files may spell absence as a mask that is off everywhere."""
    segmentation, box = track.segmentations[frame_index], track.boxes[frame_index]
    return segmentation is not None and box[2] > box[0] and box[3] > box[1]


def _tint(frame: np.ndarray, mask: np.ndarray, box, track_id: int, opacity: float, thickness: int) -> None:
    """Blend the track's colour into `frame`, in place, and draw the mask's inner contour."""
    height, width = mask.shape
    x0, y0, x1, y1 = (int(edge) for edge in box)
    around = np.s_[
        max(0, y0 - thickness) : min(height, y1 + thickness), max(0, x0 - thickness) : min(width, x1 + thickness)
    ]
    inside, region = mask[around], frame[around]
    colour = np.array(track_colour(track_id), dtype=np.float32)
    region[inside] = np.rint(region[inside] * (1 - opacity) + colour * opacity).astype(np.uint8)
    # What lies outside the frame counts as object, so that the frame's edge is no contour.
    core = ndimage.binary_erosion(inside, iterations=thickness, border_value=1)
    region[inside & ~core] = colour.astype(np.uint8)


def _write_labels(frame: np.ndarray, tracks: Sequence[Track], frame_index: int) -> np.ndarray:
    """Label each track at its box, best first, where no label stands yet and always within the frame."""
    height, width = frame.shape[:2]
    font = _font(int(np.clip(round(min(height, width) / 26), 10, 36)))
    margin = max(1, round(font.size / 6))
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    taken: list[tuple[float, float, float, float]] = []
    for track in tracks:
        text = _fitting_text(track, font, width - 2 * margin)
        left, top, right, bottom = font.getbbox(text)
        # The height of a tall letter and of one with a tail, so that all labels are of one height.
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


def _fitting_text(track: Track, font, width: int) -> str:
    text = f"{track.label} {track.score:.2f}"
    if font.getlength(text) <= width:
        return text
    label = track.label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…" if label != track.label else label


def _free_place(box, width: int, height: int, frame_size, taken) -> tuple[int, int]:
    """Top left corner of a label: above the box if there is room, else inside a large box, else below or anywhere."""
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


def _within(place, width, height, frame_size) -> bool:
    return 0 <= place[0] and place[0] + width <= frame_size[1] and 0 <= place[1] and place[1] + height <= frame_size[0]


def _overlaps(place, width, height, taken) -> bool:
    x, y = place
    return any(x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in taken)


@lru_cache
def _font(size: int):
    return ImageFont.load_default(size)
