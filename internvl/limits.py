"""Bounds on what files may ask for: beyond them is a mistake or an attack, and reading on would take all memory."""

# Annotation files. A conversation is some kilobytes; a longer line is another file's content, or lost its newlines.
MAX_LINE_BYTES = 16 << 20
MAX_TEXT_BYTES = 1 << 38  # of a compressed annotation file: more is not data but an attack on the disk
# Annotations nest to a depth of about six. ijson keeps the whole path of each value, so that a megabyte of brackets
# would take more memory than there is.
MAX_DEPTH = 500
MAX_NAME = 4096  # characters of a path; Linux takes no longer one

# An image or frame of more pixels is not decoded: half a gigabyte as RGB, and what a file of some bytes can claim. It
# is where Pillow refuses by itself, fixed here so that no library that lifts Pillow's limit lifts ours.
MAX_PIXELS = 178_956_970
# Beyond this a side is not a photo; resizing such a strip to tiles would blur everything on it.
MAX_SIDE_RATIO = 200

# Meta files. The items of an epoch are listed in memory, and the grids of so many tiles are searched one by one; the
# published recipes stay below 10 and 41.
MAX_REPEAT_TIME = 1000
MAX_TILES = 128

# Annotations: what a row may count more than another. Beyond it, float32 sums of a step lose the others.
MAX_WEIGHT = 1_000_000

# config.json. The largest published InternVL has 80 layers of 8,192 channels: many times that is a mistake, not a
# model, and would fill the memory or never be built.
MAX_LAYERS = 512
MAX_WIDTH = 1 << 16
MAX_INTERMEDIATE_WIDTH = 1 << 18
MAX_HEADS = 1024
MAX_SIDE = 8192  # pixels of a tile or a patch
MAX_POSITIONS = 1 << 30
MAX_ROPE_THETA = 10**12
MAX_ROPE_FACTOR = 10**6
MAX_INITIALIZER = 1000
MAX_EPSILON = 0.1
MAX_LABELS = 1000  # transformers makes a name for each
# No vocabulary is larger, and tokenizers counts up to the largest id when it saves one.
MAX_TOKEN_ID = 1 << 24

# Adapters: the width of the largest language model; a higher rank is a damaged file.
MAX_RANK = 8192
MAX_ALPHA = 1e6
