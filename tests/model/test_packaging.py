"""What every folder we write holds beside weights: chat template, stop token, tile limits, files old readers know."""

import json
import shutil

import pytest
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from internvl.commands.prepare_pretrained import check, prepare
from internvl.model.adapter import choose_trainable
from internvl.model.chat_template import chat_template
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_conversion import convert_from_hf, convert_to_hf
from internvl.model.internvl_chat.conversation import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    TEMPLATES,
    Turn,
    get_conv_template,
    join_segments,
    place_images,
    render_turns,
)
from internvl.model.loading import load_config, load_model
from internvl.model.merging import merge_checkpoint
from internvl.model.packaging import model_code_files
from internvl.train.output import OutputFolder
from tests.conftest import make_image

CONVERSATIONS = {
    "text": [Turn("human", "Hello.")],
    "one image": [Turn("human", "<image>\nWhat is it?")],
    "several": [Turn("human", "<image>\n<image>\nCompare them.")],
    "history": [Turn("human", "<image>\nWhat?"), Turn("gpt", "A cup."), Turn("human", "Its colour?")],
    "system": [Turn("system", "Answer briefly."), Turn("human", "Hello.")],
    "empty": [Turn("human", "")],
}
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
IMAGE_TOKENS = 4


def messages(turns: list[Turn], *, parts: bool) -> list[dict]:
    """Turns as OpenAI messages; ``parts`` gives images as parts of the content."""
    result = []
    for turn in turns:
        content = turn.value
        if parts:
            head, *rest = turn.value.split("<image>\n")
            content = [{"type": "text", "text": head}] if head else []
            for text in rest:
                content += [{"type": "image", "image": make_image(56, 56, 1)}, *([{"type": "text", "text": text}])]
        result.append({"role": ROLES[turn.role], "content": content})
    return result


def training_prompt(template: str, turns: list[Turn]) -> str:
    num_images = sum(turn.value.count("<image>") for turn in turns)
    placed = place_images(turns, [IMAGE_TOKENS] * num_images)
    return join_segments(render_turns(get_conv_template(template), placed, add_generation_prompt=True))


@pytest.fixture
def folders(tiny_base, trained_adapter, tmp_path):
    """Every kind of folder that is written: base, adapter, merged, -hf, and the published layout made of that."""
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    convert_to_hf(Checkpoint(tmp_path / "merged"), tmp_path / "hf")
    convert_from_hf(Checkpoint(tmp_path / "hf"), tmp_path / "back")
    loaded = load_model(trained_adapter)
    output = OutputFolder(
        tmp_path / "adapter",
        base=Checkpoint(tiny_base),
        tokenizer=loaded.tokenizer,
        save_full_model=False,
    )
    output.save_model(loaded.model)
    return {"base": tiny_base, **{name: tmp_path / name for name in ("adapter", "merged", "hf", "back")}}


@pytest.mark.parametrize("kind", ["base", "adapter", "merged", "hf", "back"])
def test_chat_template_of_every_folder_gives_the_ids_of_the_training_prompt(folders, kind):
    folder = folders[kind]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    marker = f"{IMG_START_TOKEN}{IMG_CONTEXT_TOKEN * IMAGE_TOKENS}{IMG_END_TOKEN}"
    for name, turns in CONVERSATIONS.items():
        expected = tokenizer(training_prompt("internlm2-chat", turns))["input_ids"]
        for parts in (True, False):
            if kind == "hf" and not parts and "<image>" in turns[0].value:
                continue  # images are parts of a content there, as transformers' processor reads them
            text = tokenizer.apply_chat_template(
                messages(turns, parts=parts), add_generation_prompt=True, tokenize=False
            )
            text = text.replace(IMG_CONTEXT_TOKEN if kind == "hf" else "<image>", marker)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, (name, parts)


@pytest.mark.parametrize("kind", ["base", "adapter", "merged", "hf", "back"])
def test_every_folder_is_readable_by_servers_on_transformers_4(folders, kind):
    folder = folders[kind]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert "<|im_end|>" in config["additional_special_tokens"]
    assert config["chat_template"] == (folder / "chat_template.jinja").read_text()
    if kind != "adapter":
        model = json.loads((folder / "config.json").read_text())
        assert model["torch_dtype"] == model["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["base", "adapter", "merged", "hf", "back"])
def test_answers_end_at_the_end_mark_of_the_template(folders, kind):
    generation = json.loads((folders[kind] / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    stops = generation["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])
    assert tokenizer.eos_token_id not in (stops if isinstance(stops, list) else [stops])


def test_the_tiles_of_a_training_travel_to_adapter_merged_and_hf_folder(tiny_base, tmp_path):
    model, tokenizer = load_model(tiny_base)
    assert model.config.max_dynamic_patch == 12
    model.config.max_dynamic_patch, model.config.use_thumbnail = 3, True
    trained = choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=4)
    output = OutputFolder(tmp_path / "adapter", base=Checkpoint(tiny_base), tokenizer=tokenizer, save_full_model=False)
    output.save_model(trained)
    assert load_config(Checkpoint(tmp_path / "adapter")).max_dynamic_patch == 3
    merge_checkpoint(Checkpoint(tmp_path / "adapter"), tmp_path / "merged")
    convert_to_hf(Checkpoint(tmp_path / "merged"), tmp_path / "hf")
    for folder in ("adapter", "merged"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["max_dynamic_patch"] == 3
        processor = json.loads((tmp_path / folder / "preprocessor_config.json").read_text())
        assert processor["max_dynamic_patch"] == 3
    wide = make_image(300, 60, 2)
    assert len(AutoProcessor.from_pretrained(tmp_path / "hf")(images=wide, text="<IMG_CONTEXT>")["pixel_values"]) == 4


def test_the_documented_cp_of_config_json_leaves_the_tiles_of_the_training(
    tiny_base, trained_adapter, tmp_path, caplog
):
    merged = tmp_path / "merged"
    merge_checkpoint(Checkpoint(trained_adapter), merged)
    settings = json.loads((merged / "preprocessor_config.json").read_text())
    (merged / "preprocessor_config.json").write_text(json.dumps({**settings, "max_dynamic_patch": 5}))
    shutil.copyfile(tiny_base / "config.json", merged / "config.json")
    assert load_config(Checkpoint(merged)).max_dynamic_patch == 5
    assert "max_dynamic_patch 12 there, 5 here" in caplog.text


def test_a_published_folder_gets_the_template_of_training_and_keeps_its_own(tiny_base, tmp_path, capsys):
    folder = tmp_path / "published"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    published = {**json.loads(file.read_text()), "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}\n"}
    file.write_text(json.dumps(published))
    assert any("chat template is not that of the internlm2-chat prompt" in problem for problem in check(folder))
    assert any("Replaced the chat template" in sentence for sentence in prepare(folder))
    assert check(folder) == []
    assert prepare(folder) == []
    assert json.loads((folder / "original_files" / file.name).read_text()) == published


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_renders_in_jinja_as_in_python(tiny_base, template):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = chat_template(get_conv_template(template))
    for turns in CONVERSATIONS.values():
        segments = render_turns(get_conv_template(template), turns, add_generation_prompt=True)
        rendered = tokenizer.apply_chat_template(
            messages(turns, parts=False), add_generation_prompt=True, tokenize=False
        )
        assert rendered == "<s>" + join_segments(segments)


def test_the_processor_renders_messages_as_training_does(trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    for turns in CONVERSATIONS.values():
        inputs = processor.apply_chat_template(
            messages(turns, parts=True), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        expected = processor.tokenizer(training_prompt("internlm2-chat", turns))["input_ids"]
        assert inputs["input_ids"].tolist() == [expected]
        num_images = sum(turn.value.count("<image>") for turn in turns)
        assert len(inputs.get("pixel_values", [])) == num_images
    text = processor.apply_chat_template(messages(CONVERSATIONS["history"], parts=True))
    tokenizer_text = processor.tokenizer.apply_chat_template(
        messages(CONVERSATIONS["history"], parts=True), tokenize=False
    )
    assert text == tokenizer_text


def test_each_file_transformers_starts_from_names_all_the_files_it_reaches():
    """transformers before 5.6 copies of a checkpoint's code what the file at hand imports, and no further."""
    from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

    files = {file.stem: file for file in model_code_files()}
    for entry in (
        "configuration_internvl_chat", "modeling_internvl_chat",
        "image_processing_internvl_chat", "processing_internvl_chat",
    ):  # fmt: skip
        reached = {path.rsplit("/", 1)[-1].removesuffix(".py") for path in get_relative_import_files(files[entry])}
        assert reached - {entry} <= set(get_relative_imports(files[entry])), entry
