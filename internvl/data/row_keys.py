"""Keys of an annotation row: those that are read, those that other tools read and that must not be lost, and the rest.

A key that is not read is counted and shown by the check; one that would change what is asked or supervised is
honoured or refused.
"""

from collections.abc import Iterator

from internvl.data.problems import RowError
from internvl.data.weights import WEIGHT_KEYS
from internvl.errors import shorten

ROW_KEYS = {
    "id",
    "conversations",
    "image",
    "video",
    "clip",
    "width",
    "height",
    "width_list",
    "height_list",
    "rejected",
    *WEIGHT_KEYS,
}
SYSTEM_KEYS = ("system", "system_prompt")  # of LLaMA-Factory and ms-swift, and of lmms-finetune
TURN_KEYS = {"from", "value", *WEIGHT_KEYS}
SOUND = ((None, "", []), "sound, which the model does not hear", "Remove the row, or the key if nothing needs it")
# Key of another tool → the values that change nothing, what it means there, and what to do here.
MEANINGFUL_KEYS = {
    "tools": (
        (None, [], ""),
        "tools that the prompt would list",
        "Write them into the system turn, or remove the key",
    ),
    "history": ((None, []), "turns before the first", "Put them in front of the turns in 'conversations'"),
    "objects": (
        (None, {}, []),
        "boxes for marks in the text",
        "Fill them in: python tools/convert_annotations.py FILE OUT.jsonl --from messages",
    ),
    **dict.fromkeys(
        ("loss_weight", "sample_weight", "loss_scale"),
        ((None, 1, 1.0), "that an answer counts more or less", "Rename it to 'weight'"),
    ),
    "audio": SOUND,
    "audios": SOUND,
    "channel": ((None,), "that losses are told apart by it", "Remove the key, or make a data set of each channel"),
}
# Keys under which other tools have a row's media → the key that is read here.
MEDIA_KEYS = {
    **dict.fromkeys(("images", "Image", "img", "image_path", "image_paths", "image_file", "img_path"), "image"),
    **dict.fromkeys(("videos", "Video", "video_path", "video_paths", "video_file"), "video"),
}
REJECTED_NOTE = "key 'rejected', read by --objective dpo and mpo alone"
KNOWN_KEYS = ROW_KEYS.union(SYSTEM_KEYS, MEANINGFUL_KEYS)
KNOWN_TURN_KEYS = TURN_KEYS.union(MEANINGFUL_KEYS)
# Marks that other tools replace by something; here they would be trained on as the letters they are.
FOREIGN_MARKS = ("<bbox>", "<ref-object>", "<audio>")


def check_meaningful(record: dict, where: str, of: str = "") -> None:
    """Refuse keys that change in another tool what is asked or supervised; ``of`` names the turn they are of.

    Raises:
        RowError: names the key, its value and what it means there.
    """
    if record.keys().isdisjoint(MEANINGFUL_KEYS):  # almost always
        return
    for key, (neutral, meaning, todo) in MEANINGFUL_KEYS.items():
        if key in record and not any(record[key] is value or record[key] == value for value in neutral):
            what = f"{of}has the key {key!r} ({shorten(record[key], 60)}): {meaning}"
            raise RowError(where, f"key {key!r}", what, todo)


def nearest_format(record: dict) -> str | None:
    """Return which ``--from`` an object is for, by its keys; None if it is for none."""
    conversations, messages = record.get("conversations"), record.get("messages")
    if "chosen" in record and "rejected" in record:
        return "preferences"
    if isinstance(messages, list):
        return "messages"
    if isinstance(conversations, list):
        roles = any(isinstance(turn, dict) and "role" in turn for turn in conversations)
        return "sharegpt" if roles or any(record.get(key) for key in ("images", "videos")) else "llava"
    if "instruction" in record or ("query" in record and "response" in record):
        return "alpaca"
    if "image" in record and "caption" in record:
        return "captions"
    if "images" in record and "annotations" in record:
        return "coco"
    return None


def _has_own_media(record: dict) -> bool:
    """Whether a row has media under the keys that are read."""
    return bool(record.get("image") or record.get("video"))


def check_own_form(record: dict, where: str) -> None:
    """Refuse a row that is in a form which the conversion reads, and training does not.

    Raises:
        RowError: names the ``--from`` that it is for.
    """
    conversations = record.get("conversations")
    if isinstance(conversations, list) and _is_plain(record, conversations):
        return
    if "chosen" in record and "rejected" in record:
        form: str | None = "preferences"
    elif isinstance(conversations, list):  # ours, but for turns of role and content, or media under other keys alone
        has_roles = any(isinstance(turn, dict) and "role" in turn and "from" not in turn for turn in conversations)
        has_others = any(record.get(key) for key in ("images", "videos")) and not _has_own_media(record)
        form = "sharegpt" if has_roles or has_others else None
    else:
        form = nearest_format(record)
    if form is None:
        return
    what = f"has the keys {shorten(sorted(record), 100)}, the form of --from {form}"
    todo = f"Convert the file: python tools/convert_annotations.py FILE OUT.jsonl --from {form}"
    raise RowError(where, "another format", what, todo)


def _is_plain(record: dict, turns: list) -> bool:
    """Whether a row has the keys of our form alone: a quick answer for almost all."""
    if "images" in record or "videos" in record or "chosen" in record:
        return False
    return all(isinstance(turn, dict) and "from" in turn for turn in turns)


def check_media_keys(record: dict, where: str) -> None:
    """Refuse a row whose media are all under keys of other tools: it would train as if it had none.

    Raises:
        RowError: names the key and the one that is read.
    """
    if _has_own_media(record):
        return
    for key, ours in MEDIA_KEYS.items():
        if record.get(key):
            what = f"has the key {key!r} ({shorten(record[key], 60)}) and no {ours!r}"
            raise RowError(where, f"key {key!r}", what, f"Rename it to {ours!r}")


def unread_keys(record: dict) -> Iterator[str]:
    """Yield a note for each key of a row and its turns that nothing reads."""
    if not record.keys() <= KNOWN_KEYS:
        for key in sorted(record.keys() - KNOWN_KEYS):
            yield f"key {shorten(key, 40)}, not read"
    if record.get("rejected") is not None:
        yield REJECTED_NOTE
    for turn in record["conversations"]:
        if len(turn) == 2:  # "from" and "value"
            continue
        for key in sorted(turn.keys() - KNOWN_TURN_KEYS):
            yield f"key {shorten(key, 40)} of turns, not read"


def system_message(record: dict, where: str) -> str | None:
    """Return the system message that a row has in a key of its own, None without one.

    Raises:
        RowError: it is not text, or two keys have different ones.
    """
    if record.keys().isdisjoint(SYSTEM_KEYS):
        return None
    found = {key: record[key] for key in SYSTEM_KEYS if record.get(key)}
    for key, value in found.items():
        if not isinstance(value, str):
            raise RowError(where, "system message", f"{key} is {shorten(value, 60)}", "Give its text, or remove it")
    if len(set(found.values())) > 1:
        what = f"has two system messages, in {' and '.join(found)}"
        raise RowError(where, "system message", what, "Keep one of them")
    return next(iter(found.values()), None)
