"""Files checked by pydantic's schemas, and its errors in this project's words."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from internvl.errors import UserError, shorten

T = TypeVar("T")
OTHER_TYPES = {
    "string": "a text in quotes",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def validate(schema: TypeAdapter[T], content: object, file: Path | str, key: str = "", todo: str = "") -> T:
    """Return parsed JSON as its schema has it. Types are exact: true is not a number, and "1" neither.

    Args:
        schema: what the content is to be; a field may have a ``description`` that says so in words.
        content: the parsed JSON.
        file: where it is from, for the message.
        key: where in the file it is from; empty for all of it.
        todo: the advice, where other values than those in the file are not the user's to give.

    Raises:
        UserError: one message, about the first field that is wrong.
    """
    try:
        return schema.validate_python(content, strict=True)
    except ValidationError as err:
        # A misspelt key is unknown, and missing under its right name: the first is said.
        first = min(
            err.errors(include_url=False, include_context=False, include_input=False),
            key=lambda error: error["type"] != "extra_forbidden",
        )
        raise UserError(_message(schema.json_schema(), content, first, file, key, todo)) from err


def _message(schema: dict, content: object, error: ErrorDetails, file: Path | str, key: str, todo: str) -> str:
    """Return pydantic's ``error`` as one message; the other arguments are those of :func:`validate`."""
    kind, definitions = error["type"], schema.get("$defs", {})
    steps, node, value = _follow(error["loc"], schema, content)
    if kind == "extra_forbidden":
        (form,) = (option for option in _options(node, definitions) if "properties" in option)
        what, advice = "is not a key of an entry", f"Use one of {', '.join(sorted(form['properties']))}."
        steps.append(error["loc"][-1])
    elif kind == "string_unicode":
        what, advice = f"has a lone surrogate ({shorten(value)})", "Write the whole character, or remove it."
    else:
        words = _words(node, definitions)
        what = "is missing" if kind == "missing" else f"is {shorten(value)}{f', not {words}' if todo else ''}"
        advice = todo or f"Give {words}."
    path = key + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return f"{file}{':' if path else ''}{path.removeprefix('.')}: {what}. {advice}"


def _follow(loc: tuple[str | int, ...], schema: dict, content: Any) -> tuple[list[str | int], dict, Any]:
    """Return the steps of ``loc`` that lead to a field or an item, and its JSON schema and value.

    The others are a key that is not known, or the branches of a union: there the whole value fits none of them.
    """
    steps: list[str | int] = []
    node, value = schema, content
    for step in loc:
        child = _child(_options(node, schema.get("$defs", {})), step)
        if child is None:
            break
        steps.append(step)
        node, value = child, value.get(step) if isinstance(value, dict) else value[step]
    return steps, node, value


def _options(node: dict, definitions: dict) -> list[dict]:
    """Return the JSON schemas of which a value is to fit one."""
    return [
        definitions[option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        for option in node.get("anyOf", [node])
    ]


def _child(options: list[dict], step: str | int) -> dict | None:
    """Return the JSON schema of a key or of an item; None where none of ``options`` has such a one."""
    for option in options:
        if step in option.get("properties", {}):
            return option["properties"][step]
        if isinstance(step, int) and "items" in option:
            return option["items"]
    return None


def _words(node: dict, definitions: dict) -> str:
    """Return what a JSON schema allows, as the object of a sentence."""
    if "description" in node and "properties" not in node:  # there it is the docstring of a class
        return node["description"]
    return ", or ".join(_option_words(option) for option in _options(node, definitions))


def _option_words(option: dict) -> str:
    match option:
        case {"enum": values}:
            return f"one of {', '.join(values)}"
        case {"properties": _}:
            required = option.get("required", [])
            return "an object" + (f" with {' and '.join(required)}" if required else "")
        case {"description": words}:
            return words
        case {"type": "integer" | "number" as kind}:
            bounds = [
                f"{word} {option[key]:{',' if isinstance(option[key], int) else 'g'}}"
                for word, key in (("from", "minimum"), ("above", "exclusiveMinimum"), ("to", "maximum"))
                if key in option
            ]
            return " ".join(["a whole number" if kind == "integer" else "a number", *bounds])
    return OTHER_TYPES[option["type"]]
