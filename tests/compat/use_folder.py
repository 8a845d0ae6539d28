"""Do with a checkpoint folder all that ``AutoModel`` and its kin offer, and write down what came out.

    python use_folder.py FOLDER HF_FOLDER OUT.json IMAGE…

Runs on every transformers that ``run.sh`` names, with nothing of this repository on the import path. OUT.json holds
the greedy ids of each image's caption, a text chat, and logits; an operation that fails ends the program. HF_FOLDER
is the same model in transformers' own layout, or ``-``.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    TextIteratorStreamer,
)

QUESTION = "Provide a one-sentence caption for the provided image."
GREEDY = {"max_new_tokens": 24, "do_sample": False}
LOGIT_POSITIONS = 8


def use_chat(model, tokenizer, processor) -> dict:
    """Text, one image, a history, several images, and a batch that answers as its rows alone do."""
    images = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((60, 60), (150, 60), (60, 200))]
    tiles = [processor.image_processor(image, max_dynamic_patch=4)["pixel_values"] for image in images]
    assert len({len(part) for part in tiles}) > 1
    text = model.chat(tokenizer, None, "Hello.", GREEDY)
    first, history = model.chat(tokenizer, tiles[1], "What?", GREEDY, return_history=True)
    assert history == [("<image>\nWhat?", first)]
    second, history = model.chat(tokenizer, tiles[1], "And?", GREEDY, history=history, return_history=True)
    assert history[1] == ("And?", second)
    counts = [len(tiles[0]), len(tiles[1])]
    several = model.chat(tokenizer, torch.cat(tiles[:2]), "<image> or <image>?", GREEDY, num_patches_list=counts)
    questions = ["<image>\nWhat?", "<image>\nWhere is the bed?", "<image>\nHow many?"]
    counts = [len(part) for part in tiles]
    together = model.batch_chat(tokenizer, torch.cat(tiles), questions, GREEDY, num_patches_list=counts)
    alone = [model.chat(tokenizer, *pair, GREEDY) for pair in zip(tiles, questions, strict=True)]
    assert together == alone, (together, alone)
    return {"text": text, "first": first, "second": second, "several": several, "batch": together}


def use_generate(model, tokenizer, inputs: dict) -> dict:
    """Beams, sampling by seed, a streamer, no cache, a cache of fixed size; returns the ids of the beams."""
    greedy = model.generate(**inputs, **GREEDY)
    beams = model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False)
    assert beams.shape[0] == 1 and beams.shape[1] <= 8
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(model.generate(**inputs, max_new_tokens=12, do_sample=True, temperature=2.0).tolist())
    assert samples[0] == samples[1] != samples[2]
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    ids = model.generate(**inputs, **GREEDY, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(ids[0], skip_special_tokens=True)
    for settings in ({"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        assert model.generate(**inputs, **GREEDY, **settings).tolist() == greedy.tolist(), settings
    return {"beams": beams.tolist(), "several": model.generate(
        **inputs, num_beams=3, num_return_sequences=3, max_new_tokens=6, do_sample=False
    ).tolist()}  # fmt: skip


def use_saving(model, tokenizer, processor, logits: torch.Tensor, ids: torch.Tensor) -> None:
    """Save all parts and load them again, with both attention kernels."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
        for attention in ("eager", "sdpa"):
            again = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention).eval()
            assert again.language_model.config._attn_implementation == attention
            assert torch.allclose(again(input_ids=ids).logits, logits, atol=1e-4), attention
        again = AutoProcessor.from_pretrained(folder, trust_remote_code=True).tokenizer
        assert again("Hi")["input_ids"] == tokenizer("Hi")["input_ids"]


def use_names(folder: Path) -> None:
    """Load the folder under names that are no Python names, and as the working directory."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as parent:
        for name in ("v2.0-best", "2b.merged", "plain", "naïve folder"):
            shutil.copytree(folder, Path(parent) / name)
        for name in (f"{parent}/v2.0-best", f"{parent}/2b.merged", f"{parent}/plain/", f"{parent}/naïve folder"):
            assert AutoModel.from_pretrained(name, trust_remote_code=True).num_image_token
        os.chdir(Path(parent) / "plain")
        try:
            AutoConfig.from_pretrained(".", trust_remote_code=True)
            AutoModel.from_pretrained(".", trust_remote_code=True)
        finally:
            os.chdir(here)


def use_hf_folder(folder: str, path: str) -> list[int]:
    """Return the greedy ids of an image's caption by transformers' own classes."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.model_type == "internvl" and tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    return model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()


def main() -> None:
    folder, hf_folder, out, *paths = sys.argv[1:]
    sys.modules["internvl"] = None  # installed or not: the folder has to do without the repository
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "InternVLChatConfig"
    assert type(processor.tokenizer).__name__ == type(tokenizer).__name__
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    result = {"transformers": transformers.__version__, "captions": []}
    for path in paths:
        inputs = processor(images=[Image.open(path)], text=QUESTION)
        result["captions"].append(model.generate(**inputs, **GREEDY)[0].tolist())
    with torch.no_grad():
        logits = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"]).logits
        ids = torch.arange(40, 60)[None]
        result["logits"] = logits[0, -LOGIT_POSITIONS:].tolist()
        result["chat"] = use_chat(model, tokenizer, processor)
        result["generate"] = use_generate(model, tokenizer, dict(inputs))
        plain = model(input_ids=ids).logits
        use_saving(model, tokenizer, processor, plain, ids)
        use_names(Path(folder))
        half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert (half(input_ids=ids).logits.float() - plain).abs().max() < 0.05 * plain.abs().max()
        assert isinstance(half.chat(tokenizer, None, "What?", GREEDY), str)
    messages = [{"role": "user", "content": "Hello."}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    result["template"] = tokenizer(encoded, add_special_tokens=False)["input_ids"]
    assert result["template"] == tokenizer(model.build_prompt([("Hello.", None)], []))["input_ids"]
    if hf_folder != "-":
        result["hf"] = [use_hf_folder(hf_folder, path) for path in paths[:2]]
    Path(out).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
