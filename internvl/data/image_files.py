"""Which files are images: every suffix that Pillow opens, and those of images that it does not."""

from functools import cache

from PIL import Image

# Formats that Pillow recognises and does not decode by itself: films, data files, and pages for other programs.
NOT_IMAGES = {"MPEG", "HDF5", "GRIB", "BUFR", "EPS", "WMF"}
# Images by their suffix that Pillow has no reader for; a folder that holds some is not read without them in silence.
UNREADABLE_SUFFIXES = frozenset(
    (".heic", ".heif", ".jxl", ".svg", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".npy")
)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, of files that Pillow opens as images."""
    Image.init()
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in suffixes if name in Image.OPEN and name not in NOT_IMAGES)
