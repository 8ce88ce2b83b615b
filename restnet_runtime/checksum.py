"""Checksum: finds damage in files at the speed of memory, which SHA-256 does not reach by a factor of ten.

It stands against damage (a bit that flipped, a page that was lost or swapped), not against forgery: what it guards are files
that this program wrote for itself. XXH3, 128 bits.
"""

import os

import xxhash

_PIECE_BYTES = 2**20


def checksum(data: memoryview) -> str:
    """32 hexadecimal digits that stand for the content and length of `data`."""
    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(descriptor: int, offset: int, length: int) -> str:
    """`checksum` of a part of an open file, another one if the file is too short.

    Read in pieces and not mapped: what is only looked at should not count as memory of this process.
    """
    digest = xxhash.xxh3_128()
    buffer, done = memoryview(bytearray(min(_PIECE_BYTES, length))), 0
    while done < length:
        count = os.preadv(descriptor, [buffer[: min(_PIECE_BYTES, length - done)]], offset + done)
        if not count:
            break
        digest.update(buffer[:count])
        done += count
    return digest.hexdigest()
