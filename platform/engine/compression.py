"""zstd read back within bounds: what a stored object claims about itself costs nothing before it is believed."""

import zstandard

from engine.errors import ObjectDamaged
from engine.ports import Buffer


def decompress(packed: Buffer, *, bytes_max: int, name: str) -> bytes:
    """The content of one zstd frame that states its size, as ours do. Raises ObjectDamaged.

    The library's own bound is ignored for a frame with a stated size, and a false one of 2^50 bytes ends in a
    MemoryError.
    """
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= bytes_max:
            raise ObjectDamaged(f"{name}: compressed content claims {size} bytes")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=bytes_max)
    except zstandard.ZstdError as error:
        raise ObjectDamaged(f"{name}: content does not decompress") from error
