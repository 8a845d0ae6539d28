"""Conversations of other tools → the fields of our rows: LLaVA, ms-swift, OpenAI, LLaMA-Factory, alpaca, TRL, MMPR."""

from collections.abc import Callable

from internvl.data.annotation import path_of
from internvl.data.problems import RowError
from internvl.data.row_keys import MEANINGFUL_KEYS, SYSTEM_KEYS, nearest_format, system_message
from internvl.data.video import place_frames
from internvl.data.weights import WEIGHT_KEYS
from internvl.errors import shorten
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn

ROLES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt", "system": "system"}
# What conversion changes; all other fields of a row are kept as they are.
MEDIA_FIELDS = {"image", "images", "video", "videos"}
CONVERTED_FIELDS = {"conversations", "messages", *SYSTEM_KEYS, *MEDIA_FIELDS}
INSTRUCTION_FIELDS = {"instruction", "input", "output", "query", "response", "history"}
PREFERENCE_FIELDS = {"prompt", "question", "chosen", "rejected", "conversations", "messages", "instruction", "input"}


def check_shape(record: dict, name: str, where: str) -> None:
    """Refuse an object that is of another format than ``name``, with the one it is of.

    Raises:
        RowError: names the keys it has, and the format to name with --from.
    """
    nearest = nearest_format(record)
    if nearest == name or (nearest, name) in (("llava", "internvl"), ("llava", "sharegpt")):
        return
    what = f"is an object with the keys {shorten(sorted(record), 100)}"
    if nearest is None:
        todo = "Write rows with 'conversations' as in the README, or a table for --from csv"
        needed = "messages" if name == "messages" else "conversations"
        value = shorten(record.get(needed), 60)
        raise RowError(where, "unknown format", f"{needed} is {value}; it {what}, which no --from is for", todo)
    raise RowError(where, "another format", f"{what}, which is not the form of {name}", f"Pass --from {nearest}")


def kept_fields(record: dict) -> dict:
    """Return the fields of a row that conversion keeps as they are."""
    return {key: value for key, value in record.items() if key not in CONVERTED_FIELDS}


def _media_fields(images: list, videos: list, record: dict) -> dict:
    """Return image and video as our rows have them: one path, or a list of several or of declared sizes."""
    fields = {}
    images, videos = [path_of(image) for image in images], [path_of(video) for video in videos]
    if images:
        fields["image"] = images[0] if len(images) == 1 and "width_list" not in record else images
    if videos:
        fields["video"] = videos[0] if len(videos) == 1 else videos
    return fields


def finish(record: dict, turns: list[dict], images: list, videos: list, where: str) -> dict:
    """Return a row of these turns and media, with what else the record has; missing marks are put in.

    A video given as a list of its frames becomes images, in the words in which frames of a video are told.

    Args:
        record: the row as the other tool has it.
        turns: ``{"from": …, "value": …}`` each, in our roles; changed in place.
        images: paths of the images, in the order of their marks.
        videos: the same of the videos; instead of a path, one may be the list of its frames.
        where: the row's file and line, for messages.

    Raises:
        RowError: it has two different system messages.
    """
    system = system_message(record, where)
    if system is not None and not (turns and turns[0]["from"] == "system"):
        turns.insert(0, {"from": "system", "value": system})
    _place_missing_marks(turns, images, videos)
    if len(videos) == 1 and isinstance(videos[0], list) and not images:
        images, videos = videos[0], []
        for turn in turns:
            if isinstance(turn["value"], str) and turn["from"] == "human":
                turn["value"] = place_frames([Turn("human", turn["value"])], len(images))[0].value
    return {**kept_fields(record), **_media_fields(images, videos, record), "conversations": turns}


def _meaningful_keys(turn: dict) -> dict:
    """Return the keys of a turn that other tools learn by, for the reader of rows to judge."""
    return {key: turn[key] for key in (*MEANINGFUL_KEYS, *WEIGHT_KEYS) if key in turn}


def _one_list(where: str, noun: str, *places: object) -> list:
    """Return the paths of a row, which may be one or a list, and stand at several places if they are the same."""
    lists = [place if isinstance(place, list) else [place] for place in places if place]
    for other in lists[1:]:
        if other != lists[0]:
            what = f"lists {shorten(lists[0], 100)} and {shorten(other, 100)} as its {noun}"
            raise RowError(where, f"{noun} at two places", what, "Keep one of the lists")
    return list(lists[0]) if lists else []


def _refuse_other_fields(record: dict, known: set[str], where: str) -> None:
    """Refuse fields of another format, which conversion would lose."""
    other = next((key for key in sorted(CONVERTED_FIELDS - known - {*SYSTEM_KEYS}) if record.get(key)), None)
    if other:
        what = f"has the key {other!r} ({shorten(record[other], 60)}), which is not of this format"
        raise RowError(where, "key of another format", what, "Name the right format with --from, or remove the key")


def _from_llava(record: dict, where: str) -> dict:
    """LLaVA's rows have our form, except that some of its sets mark a video as an image."""
    _refuse_other_fields(record, {"conversations", "image", "video"}, where)
    turns = record.get("conversations")
    if record.get("video") and not record.get("image") and isinstance(turns, list):
        texts = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
        marks = [sum(text.count(mark) for text in texts) for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)]
        if marks == [1, 0]:
            turns = [
                {**turn, "value": turn["value"].replace(IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)}
                if isinstance(turn, dict) and isinstance(turn.get("value"), str)
                else turn
                for turn in turns
            ]
            return {**record, "conversations": turns}
    return record


def from_messages(record: dict, where: str) -> dict:
    """ms-swift and OpenAI: ``messages`` of role and content (text or parts), ``system``, ``images``, ``videos``.

    Raises:
        RowError: a message is not an object, or has a part of an unknown type; media are listed twice, and differ; the
            row has fields of another format, or two different system messages.
    """
    _refuse_other_fields(record, CONVERTED_FIELDS - {"conversations"}, where)
    in_parts = {IMAGE_PLACEHOLDER: [], VIDEO_PLACEHOLDER: []}
    turns = []
    for number, message in enumerate(record["messages"], 1):
        if not isinstance(message, dict):
            raise RowError(where, "messages", f"message {number} is {shorten(message, 100)}", "Give role and content")
        role, content = message.get("role"), message.get("content")
        if isinstance(content, list):
            content = _join_parts(content, in_parts, number, where)
        role = ROLES.get(role, role) if isinstance(role, str) else role
        turns.append({"from": role, "value": content, **_meaningful_keys(message)})
    images = _one_list(where, "images", record.get("images"), record.get("image"), in_parts[IMAGE_PLACEHOLDER])
    videos = _one_list(where, "videos", record.get("videos"), record.get("video"), in_parts[VIDEO_PLACEHOLDER])
    return _take_rejected(finish(record, turns, images, videos, where), where)


def _take_rejected(row: dict, where: str) -> dict:
    """Return a row with what ms-swift has as its rejected answer in our key."""
    other = row.pop("rejected_messages", None)
    text = row.pop("rejected_response", None)
    if other is not None and text is None:
        text = _last_answer(other, "rejected_messages", where)
    return row if text is None else {**row, "rejected": text}


def _last_answer(value: object, name: str, where: str) -> object:
    """Return the text of an answer: as it is, of a turn, or of the last message of a list.

    Raises:
        RowError: it is none of these.
    """
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        content = value.get("content", value.get("value"))
        if isinstance(content, list) and all(
            isinstance(part, dict) and part.get("type") == "text" for part in content
        ):
            content = "".join(part["text"] for part in content)
        value = content
    if not isinstance(value, str):
        what = f"{name} is {shorten(value, 100)}"
        raise RowError(where, f"key {name!r}", what, "Give a text, a turn with a text, or a list of messages")
    return value


def from_preferences(record: dict, where: str) -> dict:
    """Rows with ``chosen`` and ``rejected`` answers: of TRL, of InternVL's MMPR, and of LLaMA-Factory.

    The question is ``prompt`` (a text, or messages), ``question``, ``instruction`` and ``input``, ``conversations`` or
    ``messages``; without any, ``chosen`` and ``rejected`` are whole conversations that begin alike.

    Raises:
        RowError: an answer is none, or the two conversations do not begin alike; as of :func:`from_messages`.
    """
    chosen, rejected = record["chosen"], record["rejected"]
    instruction = "\n".join(
        text for key in ("instruction", "input") if isinstance(text := record.get(key), str) and text
    )
    texts = [record.get("prompt"), record.get("question"), record.get("conversations"), record.get("messages")]
    prompt = next((value for value in [*texts, instruction] if value), None)
    if prompt is None:
        if not (isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] == rejected[:-1]):
            what = f"chosen {shorten(chosen, 60)} and rejected {shorten(rejected, 60)} do not begin with one question"
            raise RowError(where, "no question", what, "Give it as 'prompt', or make both begin alike")
        prompt = chosen[:-1]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(asked, list) or not all(isinstance(turn, dict) for turn in asked):
        raise RowError(where, "no question", f"the question is {shorten(prompt, 100)}", "Give a text or messages")
    messages = [
        {"role": turn.get("role", turn.get("from")), "content": turn.get("content", turn.get("value"))}
        for turn in asked
    ]
    rest = {key: value for key, value in record.items() if key not in PREFERENCE_FIELDS}
    answer = {"role": "assistant", "content": _last_answer(chosen, "chosen", where)}
    row = from_messages({**rest, "messages": [*messages, answer]}, where)
    return {**row, "rejected": _last_answer(rejected, "rejected", where)}


def from_sharegpt(record: dict, where: str) -> dict:
    """LLaMA-Factory: ``conversations`` of from and value, or role and content; ``system``, ``images``, ``videos``.

    Raises:
        RowError: a turn is not an object; media are listed twice, and differ; the row has fields of another format, or
            two different system messages.
    """
    conversations = record["conversations"]
    if not all(isinstance(turn, dict) for turn in conversations):
        what = f"conversations is {shorten(conversations, 100)}"
        raise RowError(where, "conversations", what, "Give turns with 'from' and 'value', or 'role' and 'content'")
    _refuse_other_fields(record, CONVERTED_FIELDS - {"messages"}, where)
    turns = []
    for turn in conversations:
        role, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        turns.append({"from": ROLES.get(str(role), role), "value": value, **_meaningful_keys(turn)})
    images = _one_list(where, "images", record.get("images"), record.get("image"))
    videos = _one_list(where, "videos", record.get("videos"), record.get("video"))
    return finish(record, turns, images, videos, where)


def _from_alpaca(record: dict, where: str) -> dict:
    """Alpaca's ``instruction``, ``input``, ``output``, and ms-swift's older ``query``, ``response``; ``history``."""
    _refuse_other_fields(record, MEDIA_FIELDS, where)
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError(where, "history", f"history is {shorten(history, 100)}", "Give pairs of question and answer")
    parts = [record.get("query") or record.get("instruction"), record.get("input")]
    question = "\n".join(part for part in parts if isinstance(part, str) and part)
    answer = record.get("response") if "response" in record else record.get("output")
    pairs = [*history, [question, answer]]
    turns = [
        turn for asked, said in pairs for turn in ({"from": "human", "value": asked}, {"from": "gpt", "value": said})
    ]
    rest = {key: value for key, value in record.items() if key not in INSTRUCTION_FIELDS}
    images = _one_list(where, "images", record.get("images"), record.get("image"))
    videos = _one_list(where, "videos", record.get("videos"), record.get("video"))
    return finish(rest, turns, images, videos, where)


def _join_parts(parts: list, found: dict[str, list], number: int, where: str) -> str:
    """Return the text of a message given in parts, with marks; paths are added to ``found`` by mark."""
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url", "video", "video_url"):
            mark = IMAGE_PLACEHOLDER if kind.startswith("image") else VIDEO_PLACEHOLDER
            path = part.get(kind) or part.get("url") or part.get("path")
            if path:  # without one, it is in the row's own list
                found[mark].append(path["url"] if isinstance(path, dict) and "url" in path else path)
            text += mark
        else:
            what = f"message {number} has a part of type {shorten(kind, 30)} ({shorten(part, 100)})"
            raise RowError(where, "part of a message", what, "Use text, image and video parts")
    return text


def _place_missing_marks(turns: list[dict], images: list, videos: list) -> None:
    """Put marks before the first question when there are none at all, as ms-swift does."""
    for mark, paths in ((IMAGE_PLACEHOLDER, images), (VIDEO_PLACEHOLDER, videos)):
        texts = [turn["value"] for turn in turns if isinstance(turn["value"], str)]
        first = next((turn for turn in turns if turn["from"] == "human" and isinstance(turn["value"], str)), None)
        if paths and first and not any(mark in text for text in texts):
            first["value"] = f"{mark}\n" * len(paths) + first["value"]


CONVERTERS: dict[str, Callable[[dict, str], dict]] = {
    "internvl": _from_llava,
    "llava": _from_llava,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "alpaca": _from_alpaca,
    "preferences": from_preferences,
}
