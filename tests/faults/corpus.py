"""Damaged inputs: whole files cut, flipped and mixed up; JSON with one thing wrong deep inside; headers that lie."""

import io
import json
import random
import struct
import zlib
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image

# Stands for raw JSON text that no Python value is written as.
RAW = {
    "@NaN@": "NaN",
    "@Infinity@": "-Infinity",
    "@digits@": "9" * 5000,
    "@huge@": "1e999",
    "@half@": '"\\ud800"',
    "@nested@": "[" * 3000 + "]" * 3000,
    "@unclosed@": "[" * 200_000,
}
NAMES = [
    "",
    " ",
    ".",
    "..",
    "a b.png",
    'it\'s "quoted".png',
    "$(touch pwned).png",
    "`touch pwned`.png",
    "a;touch pwned.png",
    "line\nbreak.png",
    "\x1b[31mred.png",
    "nul\0.png",
    "\ud800.png",
    "\udcff.png",
    "x" * 5000 + ".png",
    "/".join(["deep"] * 2000),
    "-rf",
    "[/bold]",
    "{name}",
    "../outside.png",
    "images/../../outside.png",
    "/etc/hostname",
    "//etc/hostname",
    "~/outside.png",
    "https://example.com/a.png",
    "file:///etc/hostname",
    "data:image/png;base64,AAAA",
    "link.png",
    "linked/outside.png",
    "loop.png",
    "dangling.png",
    "film_linked",
    "pipe.png",
    "pipes",
    "images",
    "good.png",
    "0.png",
    "1.png",
    "film",
    "\u202egnp.exe",
    "caf\u00e9.png",
    "</script><img src=x onerror=alert(1)>",
]
ODD_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    10**12,
    10**400,
    1.5,
    -0.0,
    1e308,
    1e-308,
    [],
    {},
    [[]],
    {"": None},
    [None] * 1000,
    "text",
    "x" * 10_000,
    "<image>",
    "<image>" * 50,
    "<video>",
    "<IMG_CONTEXT>",
    "<ref>a</ref><box>[[1, 2, 3]]</box>",
    "<box>" * 3000,
    "float32",
    *NAMES,
    *RAW,
]


def paths_in(document: object, path: tuple = ()) -> list[tuple]:
    """Return the place of every value inside a JSON document."""
    items = document.items() if isinstance(document, dict) else enumerate(document) if type(document) is list else ()
    return [found for key, value in items for found in ((*path, key), *paths_in(value, (*path, key)))]


def damage_document(document: object, rng: random.Random) -> object:
    """Return a copy with one value replaced, removed, moved under another key, or put into a list."""
    document = json.loads(json.dumps(document))
    places = paths_in(document)
    if not places or rng.random() < 0.05:
        return rng.choice(ODD_VALUES)
    *parents, last = rng.choice(places)
    holder = document
    for key in parents:
        holder = holder[key]
    kind = rng.randrange(6)
    if kind <= 2:
        holder[last] = rng.choice(ODD_VALUES)
    elif kind == 3:
        del holder[last]
    elif kind == 4 and isinstance(holder, dict):
        holder[str(rng.choice(ODD_VALUES))] = holder.pop(last)
    else:
        holder[last] = [holder[last]]
    return document


def to_json(document: object, rng: random.Random | None = None) -> bytes:
    """Return a document as JSON with its raw parts in place; now and then with a key twice."""
    text = json.dumps(document)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    if rng and rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]
    return text.encode("utf-8", "surrogatepass")


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return content that was cut off, had bits flipped, parts doubled, lost or overwritten, or has other newlines."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(data) + 1)
        # Most of what decides stands in front.
        place = min(place, rng.choice((64, 1024, len(data))))
        size = rng.choice((1, 4, 64))
        kind = rng.randrange(9)
        if kind == 0:
            del data[place:]
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + size] = rng.randbytes(size)
        elif kind == 3:
            data[place:place] = data[place : place + size]
        elif kind == 4:
            del data[place : place + size]
        elif kind == 5:
            data[place:place] = bytes(size)
        elif kind == 6:
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\x7f\xff\xff\xff"))
        elif kind == 7:
            data[:0] = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\r\n", b"\0", b"\x1f\x8b"))
        else:
            data = bytearray(data.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\xe2\x80\xa8", b""))))
    return bytes(data)


def seeds() -> st.SearchStrategy[random.Random]:
    return st.integers(0, 2**32).map(random.Random)


def damaged_json(*documents: object) -> st.SearchStrategy[bytes]:
    """One of the documents with one or two things wrong in it, a few of them damaged as bytes instead."""

    def make(rng: random.Random) -> bytes:
        document = rng.choice(documents)
        if rng.random() < 0.15:
            return damage_bytes(to_json(document), rng)
        for _ in range(rng.choice((1, 1, 2))):
            document = damage_document(document, rng)
        return to_json(document, rng)

    return seeds().map(make)


def damaged_lines(*documents: object) -> st.SearchStrategy[bytes]:
    """JSON lines, some of them damaged, with any newline."""

    def make(rng: random.Random) -> bytes:
        lines = []
        for _ in range(rng.randint(1, 4)):
            document = rng.choice(documents)
            if rng.random() < 0.8:
                document = damage_document(document, rng)
            line = to_json(document, rng)
            lines.append(damage_bytes(line, rng) if rng.random() < 0.15 else line)
        newline = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\r"))
        return rng.choice((b"", b"", b"", b"\xef\xbb\xbf", b" ")) + newline.join(lines)

    return seeds().map(make)


def damaged_file(*contents: bytes) -> st.SearchStrategy[bytes]:
    return seeds().map(lambda rng: damage_bytes(rng.choice(contents), rng))


def encode_image(image: Image.Image, suffix: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def whole_images(image: Image.Image) -> list[bytes]:
    """The same image in every format and mode that data sets have."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [image.rotate(90 * turn) for turn in range(3)]
    return [
        encode_image(image, "JPEG", exif=exif, icc_profile=b"no profile" * 20),
        encode_image(image.convert("CMYK"), "JPEG"),
        encode_image(image, "JPEG", progressive=True),
        encode_image(image, "PNG", exif=exif, icc_profile=b"no profile"),
        encode_image(image.convert("P"), "PNG", transparency=0),
        encode_image(Image.new("I;16", image.size, 40_000), "PNG"),
        encode_image(image.convert("RGBA"), "PNG"),
        encode_image(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encode_image(image, "WEBP"),
        encode_image(image, "BMP"),
        encode_image(image, "TIFF", compression="tiff_lzw"),
        encode_image(image.convert("1"), "TIFF"),
        encode_image(image, "PPM"),
        encode_image(image, "ICO"),
        encode_image(image, "TGA"),
        encode_image(image, "JPEG2000"),
        encode_image(image, "PCX"),
        *lying_images(60_000, 60_000),
        *lying_images(0, 0),
        *lying_images(1, 50_000),
    ]


def lying_images(width: int, height: int) -> list[bytes]:
    """Small files that say they have width × height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)
    return [
        png + chunk(b"IEND", b""),
        bmp,
        b"GIF89a" + struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, 0x80, 0, 0) + bytes(6) + b",",
        f"P6 {width} {height} 255\n".encode() + bytes(100),
    ]


def safetensors_file(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else to_json(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def split_safetensors(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def damaged_safetensors(content: bytes) -> st.SearchStrategy[bytes]:
    """A weight file with a header that lies about lengths, offsets, dtypes and shapes, or lacks tensors."""
    header, data = split_safetensors(content)
    names = [name for name in header if name != "__metadata__"]

    def lie(rng: random.Random) -> bytes:
        changed = json.loads(json.dumps(header))
        name, other = rng.choice(names), rng.choice(names)
        entry = changed[name]
        kind = rng.randrange(10)
        if kind == 0:
            entry["data_offsets"] = changed[other]["data_offsets"]
        elif kind == 1:
            entry["data_offsets"] = rng.choice(([0, 10**15], [-1, 4], [8, 0], [0], "all", [0, 2**64]))
        elif kind == 2:
            entry["dtype"] = rng.choice(("F64", "U8", "F8_E4M3", "BOOL", "C64", "float", None, 7))
        elif kind == 3:
            entry["shape"] = rng.choice(([], [10**12, 0], [0], [-1, 4], [2**63, 2], entry["shape"][::-1], "x", None))
        elif kind == 4:
            del changed[name]
        elif kind == 5:
            changed[rng.choice(("", "../x", "x" * 5000, "\ud800", name + ".base_layer.weight"))] = changed.pop(name)
        elif kind == 6:
            return safetensors_file(changed, data, rng.choice((0, 1, 2**40, 2**64 - 1, 100_000_001, 3)))
        elif kind == 7:
            return safetensors_file(rng.choice((b"", b"null", b"[]", b"{", b"\xff" * 100, b"{}")), data)
        elif kind == 8:
            return safetensors_file(damage_document(changed, rng), data)
        else:
            return safetensors_file(changed, data[: rng.randrange(len(data))])
        return safetensors_file(changed, data)

    def make(rng: random.Random) -> bytes:
        return damage_bytes(content, rng) if rng.random() < 0.2 else lie(rng)

    return seeds().map(make)


def one_of_files(parts: dict[str, st.SearchStrategy[bytes]]) -> st.SearchStrategy[tuple[str, bytes]]:
    """(file name, damaged content): one file of a folder."""
    return st.one_of([strategy.map(lambda content, name=name: (name, content)) for name, strategy in parts.items()])


# ---- what is damaged: rows of every kind, their meta file, and captions in COCO's format ----

ANSWER = {"from": "gpt", "value": "A cup."}
ROWS = [
    {"id": 1, "conversations": [{"from": "human", "value": "Hello."}, ANSWER]},
    {"id": 2, "image": "good.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ANSWER]},
    {
        "id": 3,
        "image": ["good.png", "film/1.png"],
        "width_list": [60, 60],
        "height_list": [40, 60],
        "conversations": [{"from": "human", "value": "<image> or <image>?"}, ANSWER],
    },
    {
        "id": 4,
        "video": "film",
        "clip": [0, 3],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<video>\nWhat?"},
            {"from": "gpt", "value": "<ref>cup</ref><box>[[1, 2, 30, 40]]</box>"},
        ],
    },
    {"id": 5, "video": "film.mp4", "conversations": [{"from": "human", "value": "<video>"}, ANSWER]},
]
ENTRY = {"root": ".", "annotation": ["rows.jsonl"], "data_augment": False, "repeat_time": 1.5, "length": 5}
META = {"set": ENTRY, "other": {**ENTRY, "annotation": "rows.jsonl", "max_dynamic_patch": 3}}
COCO = {
    "images": [{"id": 1, "file_name": "good.png"}, {"id": 2, "file_name": "film/1.png"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "a cup"}, {"id": 2, "image_id": 2, "caption": "a film"}],
}


def write_rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
