"""The colors that class indices are shown in: PASCAL VOC's color map, for any number of classes."""


def voc_color(index: int) -> tuple[int, int, int]:
    """Return the color of one index.

    Its bits, three at a time, are spread over R, G and B from the top bit down. Source:
    `VOClabelcolormap.m` of the VOC development kit. Index 0 is black, 255 is (224, 224, 192).
    """
    color = [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            # The lowest bits go to the highest places, so that neighbouring indices differ most.
            color[channel] |= (index & 1) << bit
            index >>= 1

    red, green, blue = color
    return red, green, blue


def voc_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the colors of the mask indices 0 (background) to `num_classes`."""
    return tuple(voc_color(index) for index in range(num_classes + 1))
