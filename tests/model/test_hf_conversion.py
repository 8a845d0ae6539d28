"""Conversion to transformers' own InternVL classes, which are an independent second opinion on ours, and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    pipeline,
)

from internvl.commands.convert_to_hf import main as convert
from internvl.errors import UserError
from internvl.inference.engine import Engine, Request
from internvl.json_files import write_json
from internvl.model import hf_conversion
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import hf_config, original_config, parse_config
from internvl.model.hf_conversion import convert_from_hf, convert_to_hf, hf_names, published_tensors, split
from internvl.model.internvl_chat.conversation import TEMPLATES, Turn, join_segments, place_images, render_turns
from internvl.model.internvl_chat.image_processing_internvl_chat import InternVLChatImageProcessor
from internvl.model.loading import load_model
from tests.conftest import make_image

GOLDEN = ["v2_last_ln", "v2_last_norope_bias", "v2_last_ntk", "v2_last_qknorm_rms", "v2_penult_ln"]
SIZES = [(640, 480), (300, 900), (50, 40), (112, 56), (1000, 50), (56, 56)]


@pytest.fixture(scope="module")
def converted(tiny_base, tmp_path_factory) -> Path:
    """The tiny base in transformers' layout."""
    folder = tmp_path_factory.mktemp("hf") / "converted"
    convert_to_hf(Checkpoint(tiny_base), folder)
    return folder


@pytest.fixture
def hf_model(converted):
    return AutoModelForImageTextToText.from_pretrained(converted)


@pytest.fixture(scope="module")
def processor(converted):
    """The processor with the PIL backend, whose pixels are exactly ours."""
    loaded = AutoProcessor.from_pretrained(converted)
    loaded.image_processor = AutoImageProcessor.from_pretrained(converted, backend="pil")
    return loaded


def edited(folder: Path, out: Path, **changes) -> Path:
    """A copy of a checkpoint with other config entries; ``llm_config`` and ``vision_config`` are merged."""
    shutil.copytree(folder, out)
    content = json.loads((out / "config.json").read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    write_json(out / "config.json", content)
    (out / "preprocessor_config.json").unlink(missing_ok=True)  # it would go before config.json in what it settles
    return out


def golden_checkpoint(shared: Path, variant: str, out: Path) -> Path:
    """One of the tiny reference models as a checkpoint folder, with a tokenizer made up for its ids."""
    reference = shared / "reference" / "tiny"
    expected = json.loads((reference / variant / "expected.json").read_text())
    out.mkdir()
    config = json.loads((reference / variant / "config.json").read_text())
    write_json(out / "config.json", {**config, "torch_dtype": "float32"})
    weights = load_file(reference / expected["weights"])
    save_file({name: tensor.float() for name, tensor in weights.items()}, out / "model.safetensors")
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 590: "<|plugin|>", 591: "<|im_end|>", 592: "<img>", 593: "</img>"}
    names[594] = "<IMG_CONTEXT>"
    vocab = {names.get(index, f"word{index}"): index for index in range(601)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(out)
    return out


def prompts_and_tiles(model, tokenizer, tiles_of_rows: list[list[int]]):
    """Right-padded ids, mask, pixels and labels of one row per list of tile counts; an empty list is text alone."""
    prompts = []
    for number, tiles in enumerate(tiles_of_rows):
        question = "<image>\n" * len(tiles) + "Compare the waves. " * (number + 1)
        prompts.append(model.build_prompt([(question, "Many waves.")], tiles))
    inputs = dict(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right"))
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    num_tiles = sum(sum(tiles) for tiles in tiles_of_rows)
    if num_tiles:
        side = model.config.image_size
        inputs["pixel_values"] = torch.randn(num_tiles, 3, side, side)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return inputs


ROWS = {"text": [[]], "one image": [[1]], "several": [[3, 1, 2]], "padded": [[1], [], [2, 3]]}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_logits_and_loss_equal_ours(tiny_model, hf_model, rows):
    model, tokenizer = tiny_model
    inputs = prompts_and_tiles(model, tokenizer, rows)
    with torch.no_grad():
        ours, theirs = model(**inputs), hf_model(**inputs)
    mask = inputs["attention_mask"].bool()
    assert (ours.logits - theirs.logits)[mask].abs().max() < 1e-5
    assert abs(ours.loss - theirs.loss) < 1e-5


@pytest.mark.parametrize("variant", GOLDEN)
def test_variants_equal_ours_and_the_golden_logits(shared, tmp_path, variant):
    base = golden_checkpoint(shared, variant, tmp_path / "base")
    convert_to_hf(Checkpoint(base), tmp_path / "hf")
    stored = load_file(
        shared
        / "reference"
        / "tiny"
        / json.loads((shared / "reference" / "tiny" / variant / "expected.json").read_text())["inputs"]
    )
    case = "mixed_right_pad"
    ids, mask = stored[f"{case}.input_ids"].long(), stored[f"{case}.attention_mask"].bool()
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": stored[f"{case}.pixel_values"].float()}
    model = load_model(base).model
    hf_model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, hf_model(**inputs).logits
    assert (ours - theirs)[mask].abs().max() < 1e-5
    expected = load_file(shared / "reference" / "tiny" / variant / "expected.safetensors")
    step, golden = next(
        (step, expected[f"{case}.{name}"])
        for step, name in ((1, "logits"), (3, "logits_every3"), (7, "logits_every7"))
        if f"{case}.{name}" in expected
    )
    assert (theirs[..., ::step] - golden)[mask].abs().max() < 1e-4
    assert_round_trip(base, tmp_path / "hf", tmp_path / "back")


def test_gradients_equal_ours(tiny_model, hf_model):
    model, tokenizer = tiny_model
    inputs = prompts_and_tiles(model, tokenizer, ROWS["padded"])
    model(**inputs).loss.backward()
    hf_model(**inputs).loss.backward()
    theirs = dict(hf_model.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        parts = split(name, parameter.grad, model.config)
        for new, ours in zip(hf_names(name), parts, strict=True):
            norm = ours.norm()
            # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
            assert abs(norm - theirs[new].grad.norm()) < 1e-5 * norm + 1e-8, new
            compared += 1
    assert compared == len(theirs)


def assert_round_trip(base: Path, converted: Path, back: Path) -> None:
    """``convert_from_hf`` gives back every bit of the weights, the config and the tokenizer."""
    convert_from_hf(Checkpoint(converted), back)
    before, after = Checkpoint(base), Checkpoint(back)
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        ours, theirs = before.tensor(name), after.tensor(name)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8)), name
    old, new = before.config, after.config
    ours_only = {"auto_map", "architectures", "torch_dtype"}
    assert {k: v for k, v in old.items() if k not in ours_only} == {k: v for k, v in new.items() if k not in ours_only}
    assert json.loads((base / "tokenizer.json").read_text()) == json.loads((back / "tokenizer.json").read_text())


def test_round_trip_is_bit_equal(tiny_base, converted, tmp_path):
    assert_round_trip(tiny_base, converted, tmp_path / "back")
    for file in tiny_base.glob("*.json"):
        assert json.loads(file.read_text()) == json.loads((tmp_path / "back" / file.name).read_text()), file.name


def test_round_trip_of_a_sharded_bf16_checkpoint(tiny_base, tmp_path, monkeypatch):
    model, tokenizer = load_model(tiny_base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    small = hf_conversion.TensorPlan
    monkeypatch.setattr(hf_conversion, "TensorPlan", lambda tensors: small(tensors, max_bytes=100_000))
    convert_to_hf(Checkpoint(tmp_path / "base"), tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16
    assert_round_trip(tmp_path / "base", tmp_path / "hf", tmp_path / "back")


def test_what_transformers_trained_and_saved_comes_back(tiny_base, converted, hf_model, tmp_path):
    with torch.no_grad():
        hf_model.model.language_model.layers[1].self_attn.k_proj.weight.add_(1)
    hf_model.config.text_config.max_position_embeddings = 512
    hf_model.to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    AutoProcessor.from_pretrained(converted).save_pretrained(tmp_path / "hf")
    convert_from_hf(Checkpoint(tmp_path / "hf"), tmp_path / "back")
    model, tokenizer = load_model(tmp_path / "back")
    assert model.config.llm_config.max_position_embeddings == 512
    assert Checkpoint(tmp_path / "back").config["dtype"] == "bfloat16"
    before = Checkpoint(tiny_base).tensor("language_model.model.layers.1.attention.wqkv.weight")
    after = Checkpoint(tmp_path / "back").tensor("language_model.model.layers.1.attention.wqkv.weight")
    changed = (before.bfloat16() != after).any(dim=1).view(2, 4, -1)  # (groups, q q k v, head width)
    assert changed[:, 2].all() and not changed[:, [0, 1, 3]].any()
    assert tokenizer.get_vocab() == load_model(tiny_base).tokenizer.get_vocab()


def test_tied_embeddings_stay_tied(tiny_base, tmp_path):
    base = edited(tiny_base, tmp_path / "base", llm_config={"tie_word_embeddings": True})
    tensors = load_file(base / "model.safetensors")
    del tensors["language_model.output.weight"]
    save_file(tensors, base / "model.safetensors")
    convert_to_hf(Checkpoint(base), tmp_path / "hf")
    hf_model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    assert hf_model.lm_head.weight is hf_model.model.language_model.embed_tokens.weight
    assert_round_trip(base, tmp_path / "hf", tmp_path / "back")


def test_full_size_names_shapes_and_config(shared):
    published = json.loads((shared / "internvl2_2b" / "config.json").read_text())
    config = parse_config(published)
    content = hf_config(config, {"config": published}, image_token_id=92546, dtype="bfloat16")
    content = json.loads(json.dumps(content))
    with torch.device("meta"):
        theirs = InternVLForConditionalGeneration(InternVLConfig.from_dict(content)).state_dict()
    ours = {}
    for name, tensor in published_tensors(config).items():
        ours.update(zip(hf_names(name), split(name, tensor, config), strict=True))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert original_config(content, Path("config.json")) == published


@pytest.mark.parametrize("size", SIZES)
def test_processor_gives_our_tiles(converted, processor, tiny_base, size):
    image = make_image(*size, 3)
    ours = InternVLChatImageProcessor.from_pretrained(tiny_base)(image)["pixel_values"]
    prompt = "<IMG_CONTEXT>\nDescribe it."
    assert torch.equal(processor(images=image, text=prompt, return_tensors="pt")["pixel_values"], ours)
    default = AutoProcessor.from_pretrained(converted)(images=image, text=prompt, return_tensors="pt")
    assert default["pixel_values"].shape == ours.shape
    # torchvision rounds otherwise than Pillow: a few of 255 levels, and seldom.
    assert (default["pixel_values"] - ours).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("changes", "num_tiles"),
    [({"max_dynamic_patch": 4}, 5), ({"dynamic_image_size": False}, 1), ({"max_dynamic_patch": 1}, 1)],
)
def test_processor_keeps_the_tile_limits_of_the_config(tiny_base, tmp_path, changes, num_tiles):
    base = edited(tiny_base, tmp_path / "base", **changes)
    convert_to_hf(Checkpoint(base), tmp_path / "hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    for image_size in ((300, 300), (40, 30)):
        image = make_image(*image_size, 1)
        pixels = processor(images=image, text="<IMG_CONTEXT>", return_tensors="pt")["pixel_values"]
        ours = InternVLChatImageProcessor(image_size=56, **{"max_dynamic_patch": 12, **changes})(image)["pixel_values"]
        assert pixels.shape == ours.shape
    assert len(processor(images=make_image(300, 300, 1), text="<IMG_CONTEXT>")["pixel_values"]) == num_tiles


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_template_renders_our_prompt(tiny_base, tmp_path, template):
    base = edited(tiny_base, tmp_path / "base", template=template)
    convert_to_hf(Checkpoint(base), tmp_path / "hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    image = {"type": "image", "image": make_image(56, 56, 1)}

    def text(value: str) -> dict:
        return {"type": "text", "text": value}

    first, second = [image, image, text(' Compare "them".\n')], [text("And "), image, text("now?")]
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": [text(" Same {{ waves }}. ")]},
        {"role": "user", "content": second},
    ]
    turns = [
        Turn("human", '<image>\n<image>\n Compare "them".\n'),
        Turn("gpt", " Same {{ waves }}. "),
        Turn("human", "And <image>\nnow?"),
    ]
    system = ({"role": "system", "content": " Be brief. "}, Turn("system", " Be brief. "))
    for lead, lead_turns in (([], []), ([system[0]], [system[1]])):
        placed = place_images([*lead_turns, *turns], [4, 4, 4])
        prompt = join_segments(render_turns(TEMPLATES[template], placed, add_generation_prompt=True))
        rendered = processor.apply_chat_template(
            [*lead, *messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert rendered["input_ids"].tolist() == [tokenizer(prompt)["input_ids"]]
    short = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    ours = join_segments(render_turns(TEMPLATES[template], [Turn("human", "Hi"), Turn("gpt", "Hello")]))
    assert tokenizer.apply_chat_template(short, tokenize=False) == "<s>" + ours
    with pytest.raises(Exception, match="Roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "1"}], tokenize=False)


def test_video_frames_become_one_tile_each(converted):
    processor = AutoProcessor.from_pretrained(converted)
    frames = [make_image(80, 60, k) for k in range(3)]
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    tiles = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    question = "".join(f"Frame{k}: {tiles}\n" for k in (1, 2, 3)) + "What happens?"
    prompt = join_segments(render_turns(TEMPLATES["internlm2-chat"], [Turn("human", question)]))
    assert inputs["input_ids"].tolist() == [processor.tokenizer(prompt)["input_ids"]]
    assert inputs["pixel_values"].shape == (3, 3, 56, 56)


def test_pipeline_gives_our_caption(tiny_base, converted, processor):
    engine = Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=12)
    # Random weights choose single bytes, which make text only with their neighbours, the prompt's last newline too.
    single_bytes = [index for token, index in engine.tokenizer.get_vocab().items() if token.startswith("<0x")]
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": single_bytes}

    def ours(image) -> str:
        return engine.answer([Request([engine.read(image)], "Describe it.")], **settings)[0]

    def theirs(pipe, image) -> str:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe it."}]
        chat = [{"role": "user", "content": content}]
        return pipe(text=chat, return_full_text=False, generate_kwargs=settings)[0]["generated_text"].strip()

    exact = pipeline("image-text-to-text", model=str(converted), processor=processor)
    for size in SIZES:
        image = make_image(*size, 3)
        assert theirs(exact, image) == ours(image) != ""
    # By default the backend is torchvision's: the same wherever an image needs no resizing.
    image = make_image(56, 56, 3)
    assert theirs(pipeline("image-text-to-text", model=str(converted)), image) == ours(image)


def refusal(capsys, *arguments) -> str:
    """The one line that the tool ends with."""
    with pytest.raises(SystemExit) as end:
        convert([str(argument) for argument in arguments])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_mistakes_end_in_one_line(tiny_base, converted, trained_adapter, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is an adapter, and only a whole model can be converted. Merge it first"):
        convert_to_hf(Checkpoint(trained_adapter), out)
    assert "model_type is 'internvl', not 'internvl_chat'" in refusal(capsys, converted, out)
    assert "pass --back" in refusal(capsys, converted, out)
    assert "leave out --back" in refusal(capsys, "--back", tiny_base, out)
    assert "has the published layout already" in refusal(capsys, "--back", trained_adapter, out)
    assert "is a whole model, not an adapter" in refusal(capsys, tiny_base, out, "--base", tiny_base)
    assert "there is no such checkpoint folder" in refusal(capsys, tmp_path / "missing", out)
    assert "is not empty" in refusal(capsys, tiny_base, converted)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ps_version": "v1"}, "ps_version is 'v1', and transformers' InternVL has no other pixel shuffle than v2"),
        ({"use_thumbnail": False}, "use_thumbnail is false with max_dynamic_patch 12"),
        ({"template": "vicuna"}, "template: is 'vicuna'. Give one of internlm2-chat"),
        ({"downsample_ratio": 0.75}, "downsample_ratio is 0.75"),
        ({"vision_config": {"qk_normalization": True, "layer_norm_eps": 1e-5}}, "layer_norm_eps 1e-05"),
        ({"llm_config": {"num_hidden_layers": 3}}, "lacks 7 of the model's 76 tensors"),
        ({"llm_config": {"num_hidden_layers": 1}}, "holds language_model.model.layers.1"),
        ({"llm_config": {"vocab_size": 500}}, r"has shape \(\d+, 64\), and config.json makes it \(500, 64\)"),
    ],
)
def test_what_the_classes_cannot_express_is_refused(tiny_base, tmp_path, changes, message):
    base = edited(tiny_base, tmp_path / "base", **changes)
    with pytest.raises(UserError, match=message):
        convert_to_hf(Checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_embedded_lora_is_refused(tiny_base, tmp_path):
    base = edited(tiny_base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["language_model.base_model.model.model.layers.0.attention.wo.lora_A.default.weight"] = torch.zeros(8, 64)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(UserError, match="has LoRA weights inside, and only a whole model"):
        convert_to_hf(Checkpoint(base), tmp_path / "out")


def test_a_folder_of_unknown_origin_is_not_turned_back(converted, tmp_path):
    folder = edited(converted, tmp_path / "hf")
    content = json.loads((folder / "config.json").read_text())
    del content["internvl_chat"]
    write_json(folder / "config.json", content)
    with pytest.raises(UserError, match="has no entry 'internvl_chat'"):
        convert_from_hf(Checkpoint(folder), tmp_path / "out")


def test_nothing_is_left_when_converting_fails_halfway(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        convert_to_hf(Checkpoint(tiny_base), tmp_path / "out" / "hf")
    assert list((tmp_path / "out").iterdir()) == []
