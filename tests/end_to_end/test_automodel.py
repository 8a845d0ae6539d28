"""A merged folder in a process that knows transformers alone: everything a user does with ``AutoModel``."""

import subprocess
import sys

from internvl.model.checkpoint import Checkpoint
from internvl.model.merging import merge_checkpoint
from tests.conftest import bare_environment

# Runs far from the repository, with the hub switched off. Each part ends with the line the test looks for.
SCRIPT = """
import importlib.util, sys, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, AutoTokenizer, TextIteratorStreamer

folder, again = sys.argv[1:3]
assert importlib.util.find_spec("internvl") is None, "the repository is importable"
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, device_map="auto").eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor.tokenizer).__name__ == type(tokenizer).__name__
pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((60, 60), (150, 60), (60, 200))]
tiles = [processor.image_processor(picture, max_dynamic_patch=4)["pixel_values"] for picture in pictures]
assert len({len(part) for part in tiles}) > 1
greedy = {"max_new_tokens": 12, "do_sample": False}
print("loaded")

text = model.chat(tokenizer, None, "Hello.", greedy)
first, history = model.chat(tokenizer, tiles[1], "What?", greedy, return_history=True)
assert history == [("<image>\\nWhat?", first)]
second, history = model.chat(tokenizer, tiles[1], "And?", greedy, history=history, return_history=True)
assert len(history) == 2 and history[1] == ("And?", second)
counts = [len(tiles[0]), len(tiles[1])]
several = model.chat(
    tokenizer, torch.cat(tiles[:2]), "<image> or <image>?", greedy, num_patches_list=counts
)
assert all(isinstance(answer, str) for answer in (text, first, second, several))
print("chat")

questions = ["<image>\\nWhat?", "<image>\\nWhere is the bed?", "<image>\\nHow many?"]
together = model.batch_chat(
    tokenizer, torch.cat(tiles), questions, greedy, num_patches_list=[len(part) for part in tiles]
)
alone = [model.chat(tokenizer, part, question, greedy) for part, question in zip(tiles, questions)]
assert together == alone, (together, alone)
print("batch_chat")

prompt = model.build_prompt([(questions[1], None)], [len(tiles[1])])
inputs = {"pixel_values": tiles[1], **tokenizer([prompt], return_tensors="pt")}
beams = model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False)
assert beams.shape[0] == 1 and beams.shape[1] <= 8
samples = []
for seed in (1, 1, 2):
    torch.manual_seed(seed)
    samples.append(model.generate(**inputs, max_new_tokens=12, do_sample=True, temperature=2.0).tolist())
assert samples[0] == samples[1] != samples[2]
streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
ids = model.generate(**inputs, **greedy, streamer=streamer)
assert "".join(streamer) == tokenizer.decode(ids[0], skip_special_tokens=True)
print("generate")

model.save_pretrained(again)
tokenizer.save_pretrained(again)
processor.save_pretrained(again)
ids = torch.arange(40, 60)[None]
logits = model(input_ids=ids).logits
for attention in ("eager", "sdpa"):
    loaded = AutoModel.from_pretrained(again, trust_remote_code=True, attn_implementation=attention).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, logits, atol=1e-4), attention
assert AutoProcessor.from_pretrained(again, trust_remote_code=True).tokenizer("Hi")["input_ids"][0] == 1
print("saved")

half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
assert (half(input_ids=ids).logits.float() - logits).abs().max() < 0.2
assert isinstance(half.chat(tokenizer, tiles[1].bfloat16(), "What?", greedy), str)
print("bf16")
"""


def test_a_merged_folder_does_all_that_automodel_offers_without_the_repository(trained_adapter, tmp_path):
    merged = tmp_path / "merged"
    merge_checkpoint(Checkpoint(trained_adapter), merged)
    environment = bare_environment() | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, merged, tmp_path / "again"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    parts = ["loaded", "chat", "batch_chat", "generate", "saved", "bf16"]
    assert [line for line in process.stdout.splitlines() if line in parts] == parts
