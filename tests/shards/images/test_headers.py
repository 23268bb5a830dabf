"""Headers of JPEG and PNG: read without decoding, refused where they are broken."""

import numpy as np
from helpers.tiny_set import cut_in_the_pixels, jpeg, picture, png

from shards.images.headers import Header, jpeg_has_end, jpeg_header, mask_header


def test_headers() -> None:
    assert jpeg_header(jpeg(picture(1, 40, 56))) == Header(56, 40, 8, 3)
    assert jpeg_header(jpeg(picture(1, 8, 9)[..., 0])) == Header(9, 8, 8, 1)
    assert jpeg_header(cut_in_the_pixels(jpeg(picture(1, 8, 9)))) == Header(9, 8, 8, 3)
    assert mask_header(png(np.zeros((5, 6), np.uint8))) == Header(6, 5, 8, 1, "png")


def test_broken_headers_are_none() -> None:
    whole = jpeg(picture(1, 40, 56))
    scan = whole.index(b"\xff\xda")
    for end in range(0, scan, 7):
        assert jpeg_header(whole[:end]) is None
        assert jpeg_header(whole[:end] + b"x" * 1000) is None
    frame = whole.index(b"\xff\xc0")
    assert jpeg_header(whole[:frame] + b"\xff\xc3" + whole[frame + 2 :]) is None  # lossless
    assert (
        jpeg_header(whole[:frame] + whole[frame : frame + 19] + whole[frame:]) is None
    )  # two frames
    assert jpeg_header(b"\xff\xd8" + b"\xff\xe1\x00\x02Exif\0\0" + whole[2:]) is None
    assert jpeg_header(b"\xff\xd8" + b"\xff" * 5 + whole[2:]) == Header(
        56, 40, 8, 3
    )  # fill bytes are legal
    mask = png(np.zeros((5, 6), np.uint8))
    for end in range(len(mask) - 12):
        assert mask_header(mask[:end]) is None
    assert mask_header(mask[:33] + b"\xff\xff\xff\xffIDAT" + mask[41:]) is None
    assert mask_header(mask[:33] + b"\0\0\0\0eXIf\0\0\0\0" + mask[33:]) is None


def test_a_jpeg_that_is_cut_off_has_no_end() -> None:
    whole = jpeg(picture(1, 40, 56))
    scan = whole.index(b"\xff\xda")
    assert jpeg_has_end(whole)
    assert jpeg_has_end(whole + bytes(100))
    for end in range(scan + 20, len(whole) - 1, 7):
        assert not jpeg_has_end(whole[:end])

    # The thumbnail's end marker is not the image's.
    thumbnail = jpeg(picture(2, 8, 8))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert jpeg_has_end(with_thumbnail + b"more")
    assert not jpeg_has_end(with_thumbnail[:-2] + b"more")
