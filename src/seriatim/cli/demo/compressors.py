"""What general-purpose compressors reach on the bytes a model is measured on."""

import bz2
import gzip
import lzma

__all__ = ["compressed_bits"]


def compressed_bits(text: bytes) -> dict[str, float]:
    """Bits per byte of gzip, bz2 and xz at their strongest settings, each over the whole of `text` at once."""
    sizes = {
        "gzip": len(gzip.compress(text, 9)),
        "bz2": len(bz2.compress(text, 9)),
        "xz": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}
