"""Every field of every schema: what does not fit ends in one message of our form, in our words and not pydantic's."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
from pydantic import BaseModel, TypeAdapter

from internvl.data import meta
from internvl.errors import UserError
from internvl.evaluation import datasets, results, score
from internvl.model import config_schema
from internvl.schema import validate
from tests.faults.harness import check_message

ROPE = {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 10000}
PART = {"dtype": "float32", "torch_dtype": "float32", "num_labels": 2, "quantization_config": None}
LANGUAGE = PART | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "use_sliding_window": False,
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512, "initializer_range": 0.02,
    "rms_norm_eps": 1e-5, "use_cache": True, "tie_word_embeddings": False, "bias": False, "pad_token_id": 2,
    "bos_token_id": 1, "rope_theta": 10000, "rope_scaling": ROPE, "rope_parameters": dict(ROPE),
}  # fmt: skip
VISION = PART | {
    "num_channels": 3, "patch_size": 14, "image_size": 56, "hidden_size": 64, "num_attention_heads": 4,
    "intermediate_size": 128, "num_hidden_layers": 2, "qkv_bias": True, "qk_normalization": False,
    "hidden_act": "gelu", "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "dropout": 0, "drop_path_rate": 0.1,
    "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0,
}  # fmt: skip
TILING = {"dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1, "max_dynamic_patch": 6}
CHAT = PART | TILING | {
    "vision_config": VISION, "llm_config": LANGUAGE, "use_backbone_lora": 0, "use_llm_lora": 8, "select_layer": -1,
    "force_image_size": 56, "downsample_ratio": 0.5, "template": "internlm2-chat", "ps_version": "v2",
    "pad2square": False, "tie_word_embeddings": False,
}  # fmt: skip
# A whole content for each schema, with every field.
WHOLE = {
    "config.json": (config_schema.CHAT, CHAT),
    "preprocessor_config.json": (config_schema.PROCESSOR, TILING | {"image_size": 56}),
    "meta.json": (
        meta.ENTRY,
        {"root": "a", "annotation": ["a.jsonl"], "data_augment": True, "repeat_time": 0.5, "length": 5,
         "max_dynamic_patch": 6, "balance": {"field": "a", "pattern": "b", "to": "equal", "by": "weight"}},
    ),
    "datasets.json": (
        datasets.ENTRY,
        {"root": "a", "annotation": "a.json", "ground_truth": "b.json", "prompt": "Why?", "min_new_tokens": 1,
         "max_new_tokens": 9, "answers": True},
    ),
    "per_image.jsonl": (
        results.LINE,
        {"image_id": 1, "image": ["a.png"], "video": "a.mp4", "caption": "a dog", "references": ["a cat"]},
    ),
    "scores.json": (results.SCORES_FILE, {"settings": {"checkpoint": "a"}}),
    "truth.json": (score.TRUTH, {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}),
    "predictions.json": (score.PREDICTIONS, [{"image_id": "a", "caption": "a dog"}]),
}  # fmt: skip
# By the last name of a field: what may be left out of no object, be null, be any whole number, or any large one.
REQUIRED = {"root", "annotation", "image_id", "caption", "references", "images", "annotations", "id", "to"}
NULLABLE = {
    "dtype", "torch_dtype", "quantization_config", "vision_config", "llm_config", "force_image_size", "template",
    "num_key_value_heads", "pad_token_id", "bos_token_id", "rope_scaling", "rope_parameters", "architectures",
    "head_dim", "use_sliding_window",
}  # fmt: skip
NULLABLE_IN = {
    ("preprocessor_config.json", "image_size"),
    *(("meta.json", name) for name in ("length", "max_dynamic_patch", "balance", "field", "pattern")),
}
ANY_NUMBER, ANY_LARGE_NUMBER = {"id", "image_id"}, {"length", "min_new_tokens", "max_new_tokens"}
PYDANTICS = ("validation error", "input_value", "pydantic", "Input should", "Field required", "[type=")


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Paths of all fields and items in a content."""
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for step, value in steps for place in ((*path, step), *places(value, (*path, step)))]


def fields(file: str) -> list[tuple]:
    """Paths of all fields and items of a file's schema; what the settings of scores.json are is free."""
    return [path for path in places(WHOLE[file][1]) if path[-1] != "checkpoint"]


every_file = pytest.mark.parametrize("file", WHOLE)


def changed(content: object, path: tuple, *value: object) -> object:
    """The content with another value at ``path``, or without one."""
    content = deepcopy(content)
    parent = content
    for step in path[:-1]:
        parent = parent[step]
    if value:
        parent[path[-1]] = value[0]
    else:
        del parent[path[-1]]
    return content


def message(file: str, content: object, **options) -> str | None:
    """What the file is refused with, held to our form; None where it is accepted."""
    try:
        validate(WHOLE[file][0], content, file, **options)
    except UserError as err:
        text = str(err)
        check_message(text)
        assert text.startswith(f"{file}:") and "\n" not in text and not any(word in text for word in PYDANTICS), text
        return text
    return None


@every_file
def test_a_whole_content_is_accepted_and_has_every_field(file):
    schema, whole = WHOLE[file]
    assert message(file, whole) is None
    parts = [schema.json_schema(), *schema.json_schema().get("$defs", {}).values()]
    known = {name for part in parts for name in part.get("properties", {})}
    assert known == {path[-1] for path in fields(file) if isinstance(path[-1], str)}


@every_file
def test_a_wrong_type_is_refused_by_the_name_of_the_field(file):
    for path in fields(file):
        for value in ([[]], [None], b"bytes", 1j, [{"a": [1]}]):
            text = message(file, changed(WHOLE[file][1], path, value))
            assert text, f"{path} may be {value!r}"
            place, _, _ = text.partition(": ")
            assert all(step in place for step in path if isinstance(step, str)), text


@every_file
def test_null_is_refused_where_it_means_nothing(file):
    for path in fields(file):
        text = message(file, changed(WHOLE[file][1], path, None))
        allowed = path[-1] in NULLABLE or (file, path[-1]) in NULLABLE_IN
        assert (text is None) == allowed, f"{path}: {text}"
        assert text is None or ": is None" in text or ": is [None]" in text


@every_file
def test_a_missing_key_is_named_where_it_is_needed(file):
    for path in fields(file):
        if isinstance(path[-1], str):
            text = message(file, changed(WHOLE[file][1], path))
            assert (text is not None) == (path[-1] in REQUIRED), f"{path}: {text}"
            assert text is None or f"{path[-1]}: is missing. Give " in text


@every_file
def test_numbers_out_of_range_are_refused(file):
    for path in fields(file):
        for value in (2**70, 10**400, -(2**70), float("inf"), -0.5):
            text = message(file, changed(WHOLE[file][1], path, value))
            allowed = path[-1] in ANY_NUMBER or (path[-1] in ANY_LARGE_NUMBER and value > 0)
            assert (text is None) == (allowed and isinstance(value, int)), f"{path} with {value!r:.50}: {text}"


@every_file
def test_whatever_stands_there_is_accepted_or_refused_in_our_words(file):
    for path in fields(file):
        for value in (True, 0, 1, "1", "", "\udc00", {}, {"\udc00": 1}, {"a": 1}, [], "\x1b[2J", "a" * 9999):
            content = changed(WHOLE[file][1], path, value)
            message(file, content)
            message(file, content, key="3", todo="Run it again.")


@pytest.mark.parametrize("file", ["meta.json", "datasets.json"])
def test_an_unknown_key_is_named_before_the_one_that_it_replaces(file):
    whole = changed(WHOLE[file][1], ("root",)) | {"rooot": "a"}
    text = message(file, whole, key="rows")
    assert text.startswith(f"{file}:rows.rooot: is not a key of an entry. Use one of annotation, ")
    assert message(file, whole | {"\udc00": 1}, key="rows")


@pytest.mark.parametrize("content", [None, [], "text", 3, True])
@every_file
def test_another_content_is_refused(file, content):
    text = message(file, content, key="rows")
    assert text.startswith(f"{file}:rows: is {content!r}. Give a") and "an object" in text or "a list" in text


class Item(BaseModel):
    names: list[str]


def test_places_in_lists_have_their_index():
    schema = TypeAdapter(dict[str, int] | list[Item])
    with pytest.raises(UserError) as raised:
        validate(TypeAdapter(list[Item]), [{"names": ["a"]}, {"names": ["a", 5]}], "file.json")
    assert str(raised.value) == "file.json:[1].names[1]: is 5. Give a text in quotes."
    with pytest.raises(UserError) as raised:
        validate(schema, [{"names": 3}], "file.json", todo="Make it again.")
    assert str(raised.value) == "file.json: is [{'names': 3}], not an object, or a list. Make it again."


def test_activations_are_those_of_transformers():
    from typing import get_args

    from transformers.activations import ACT2FN

    assert list(get_args(config_schema.Activation)) == sorted(ACT2FN)


def test_checking_files_does_not_load_torch(repository, tiny_base):
    code = (
        "import json, pathlib, sys, internvl.data.meta\n"
        "from internvl.model.config_schema import check_config\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "check_config(json.loads(file.read_text()), file)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert json.loads((tiny_base / "config.json").read_text())["llm_config"]["hidden_act"]
    assert subprocess.run([sys.executable, "-c", code, str(tiny_base / "config.json")], cwd=repository).returncode == 0
