"""Grey images of more than 8 bits: scaled by the number of bits they have, or refused, never dark by mistake."""

import struct
import zlib

import numpy as np
import pytest

from bmfl_lab.data.images import decode_bytes
from bmfl_lab.errors import DataError

SIDE = 16


def ramp(bits):
    """Return grey values from black to white, shape (16, 16)."""
    return np.rint(np.linspace(0, 2**bits - 1, SIDE * SIDE)).astype(np.int64).reshape(SIDE, SIDE)


def tiff(raw, bits, *, photometric=1, kind=1):
    """Return a TIFF of one grey strip, written tag by tag."""
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: SIDE}
    tags |= {279: len(raw), 339: kind}
    entries = b"".join(
        struct.pack("<HHI", tag, 4 if tag in (273, 279) else 3, 1) + struct.pack("<I", value)
        for tag, value in sorted(tags.items())
    )
    head = b"II*\0" + struct.pack("<I", 8 + len(raw))
    return head + raw + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def packed12(values):
    """Return 12-bit values, two in three bytes."""
    a, b = values.reshape(-1, 2).T
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()


def png16(values):
    """Return a 16-bit grey PNG."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm(values, highest):
    return f"P5 {SIDE} {SIDE} {highest}\n".encode() + values.astype(">u2").tobytes()


READ = {
    "PNG, 16 bits": png16(ramp(16)),
    "TIFF, 16 bits": tiff(ramp(16).astype("<u2").tobytes(), 16),
    "TIFF, 16 bits, white is zero": tiff(
        (65535 - ramp(16)).astype("<u2").tobytes(), 16, photometric=0
    ),
    "TIFF, 12 bits": tiff(packed12(ramp(12)), 12),
    "PGM, 16 bits": pgm(ramp(16), 65535),
    "PGM, 12 bits": pgm(ramp(12), 4095),
    "PGM, 10 bits": pgm(ramp(10), 1023),
}


@pytest.mark.parametrize("case", READ)
def test_black_is_black_white_is_white_and_the_rest_lies_between(case):
    found = decode_bytes(READ[case])
    assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(
        found[..., 0], found[..., 2]
    )
    assert np.abs(found[..., 0].ravel() - np.arange(256.0)).max() <= 1


REFUSED = {
    "signed 16 bits": tiff((ramp(16) // 2).astype("<i2").tobytes(), 16, kind=2),
    "32 bits with values of 8": tiff(ramp(8).astype("<u4").tobytes(), 32),
    "signed 32 bits with values of 16": tiff(ramp(16).astype("<i4").tobytes(), 32, kind=2),
    "floating point": tiff((ramp(8) / 255).astype("<f4").tobytes(), 32, kind=3),
}


@pytest.mark.parametrize("case", REFUSED)
def test_numbers_without_a_known_white_are_refused(case):
    with pytest.raises(
        DataError, match=r"8 or 16 bits per channel in scan\.tif; got .*which values become black"
    ):
        decode_bytes(REFUSED[case], name="scan.tif")
