"""Draw the README's figures from the code's own numbers: assets/model_card.png and assets/train_config.png.

    python tools/draw_figures.py
    python tools/draw_figures.py --quickstart log/quickstart      # assets/quickstart.png, too

Parameters and token counts come from the model built on torch's meta device with the published sizes, the training
settings from a dry run of the COCO launcher.
"""

import argparse
import json
import os
import shlex
import subprocess
import textwrap
from dataclasses import fields
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

from internvl.model.adapter import choose_trainable, count_elements
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import choose_grid, count_tiles
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import DataArguments, ModelArguments

REPOSITORY = Path(__file__).resolve().parents[1]
COCO_LAUNCHER = "shell/internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco.sh"
# The published sizes of InternVL2-2B (its config.json).
PUBLISHED_2B = {
    "vision_config": {
        "image_size": 448, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
    },
    "llm_config": {
        "vocab_size": 92553, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_hidden_layers": 24, "max_position_embeddings": 32768, "bias": False,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000},
    },
    "force_image_size": 448, "template": "internlm2-chat", "ps_version": "v2", "max_dynamic_patch": 12,
}  # fmt: skip
EXAMPLE_IMAGE = (640, 480)
MAX_TILES = 6
FROZEN, TRAINED, DATA = "#dbe4ee", "#f6c28b", "#e8f0d8"


def published_model() -> InternVLChatModel:
    """Return InternVL2-2B without weights."""
    with torch.device("meta"):
        return InternVLChatModel(InternVLChatConfig(**PUBLISHED_2B))


def millions(module: torch.nn.Module) -> str:
    return f"{sum(map(count_elements, module.parameters())) / 1e6:,.0f} M parameters"


def box(axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a rounded box with centred text; coordinates in the axes' units."""
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc=color, ec="#51606f")
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5)


def arrow(axes, x: float, y: float, dx: float, dy: float = 0.0, label: str = "") -> None:
    axes.annotate("", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "-|>", "color": "#51606f"})
    if label:
        axes.text(x + dx / 2, y + dy / 2 + 0.12, label, ha="center", va="bottom", fontsize=8)


def draw_model_card(file: Path) -> None:
    """Draw how an image and a question become an answer."""
    model = published_model()
    config = model.config
    vision, llm = config.vision_config, config.llm_config
    width, height = EXAMPLE_IMAGE
    columns, rows = choose_grid(width, height, 1, MAX_TILES, config.image_size)
    tiles = count_tiles(width, height, min_num=1, max_num=MAX_TILES, image_size=config.image_size, use_thumbnail=True)
    tokens = tiles * config.num_image_token
    patches = (config.image_size // vision.patch_size) ** 2
    figure, axes = pyplot.subplots(figsize=(12.5, 4.4), layout="constrained")
    axes.set(xlim=(0, 14.2), ylim=(0, 4.6))
    axes.axis("off")
    axes.set_title(f"InternVL2-2B: {millions(model)}", fontsize=12)
    box(axes, 0.1, 2.6, 2.0, 1.4, f"image\n{width} × {height} px", DATA)
    arrow(axes, 2.15, 3.3, 0.75)
    box(axes, 2.95, 2.6, 2.2, 1.4, f"{columns} × {rows} tiles\n+ thumbnail\n= {tiles} × {config.image_size} px", DATA)
    arrow(axes, 5.2, 3.3, 0.75)
    box(
        axes, 6.0, 2.6, 2.5, 1.4,
        f"InternViT-300M\n{vision.num_hidden_layers} layers × {vision.hidden_size}\n{millions(model.vision_model)}\n"
        f"{patches:,} patches a tile",
        FROZEN,
    )  # fmt: skip
    arrow(axes, 8.55, 3.3, 0.75)
    box(
        axes, 9.35, 2.6, 2.4, 1.4,
        f"unshuffle + MLP\n{model.mlp1[1].in_features:,} → {llm.hidden_size:,}\n{millions(model.mlp1)}\n"
        f"{config.num_image_token} tokens a tile",
        FROZEN,
    )  # fmt: skip
    box(axes, 0.1, 0.4, 3.4, 1.2, "question, in the template\ninternlm2-chat", DATA)
    arrow(axes, 3.55, 1.0, 2.35)
    box(
        axes, 6.0, 0.3, 5.75, 1.5,
        f"InternLM2-chat-1.8B: {llm.num_hidden_layers} layers × {llm.hidden_size:,}, {llm.num_attention_heads} heads "
        f"on {llm.num_key_value_heads} key/value heads\n{millions(model.language_model)}, "
        f"vocabulary {llm.vocab_size:,}\nLoRA on wqkv, wo, w1, w2, w3",
        TRAINED,
    )  # fmt: skip
    arrow(axes, 10.55, 2.55, 0.0, -0.7)
    axes.text(10.7, 2.15, f"{tokens:,} image tokens", fontsize=8.5, va="center")
    arrow(axes, 11.8, 1.0, 0.65)
    box(axes, 12.5, 0.5, 1.6, 1.0, "answer", DATA)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def launcher_settings() -> dict[str, str]:
    """Return the settings of the COCO recipe: defaults, the flags that a dry run prints, the batch arithmetic."""
    defaults = {field.name: str(field.default) for group in (ModelArguments, DataArguments) for field in fields(group)}
    environment = {**os.environ, "DRY_RUN": "1", "INTERNVL_SKIP_INSTALL": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.run(
        ["bash", COCO_LAUNCHER], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    ).stdout
    words = shlex.split(output.strip().splitlines()[-1])
    flags = {
        word[2:]: value
        for word, value in zip(words, words[1:], strict=False)
        if word.startswith("--") and "=" not in word
    }
    arithmetic = next(line for line in output.splitlines() if line.startswith("BATCH_SIZE"))
    return {"batch": arithmetic.removeprefix("BATCH_SIZE "), **defaults, **flags}


def draw_train_config(file: Path) -> None:
    """Draw the settings of the COCO recipe as a table."""
    flags = launcher_settings()
    model = published_model()
    rank = int(flags["use_llm_lora"])
    with torch.device("meta"):
        choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=rank)
    trained = sum(count_elements(parameter) for parameter in model.parameters() if parameter.requires_grad)
    rows = [
        ("batch", flags["batch"]),
        ("trained", f"LoRA rank {rank}, alpha {2 * rank}, dropout {flags['lora_dropout']}: {trained:,} parameters"),
        ("frozen", "vision encoder, projector, language model's own weights"),
        ("learning rate", f"{flags['learning_rate']}, {flags['lr_scheduler_type']}, warm-up {flags['warmup_ratio']}"),
        ("weight decay", flags["weight_decay"]),
        ("epochs", flags["num_train_epochs"]),
        ("tiles", f"up to {flags['max_dynamic_patch']} of 448 px, and a thumbnail"),
        ("longest row", f"{flags['max_seq_length']} tokens"),
        ("checkpoints", f"every {flags['save_steps']} steps, {flags['save_total_limit']} kept: the adapter alone"),
    ]
    figure, axes = pyplot.subplots(figsize=(9.5, 3.6), layout="constrained")
    axes.axis("off")
    axes.set_title("COCO captions: InternVL2-2B, LoRA", fontsize=12)
    table = axes.table(cellText=rows, cellLoc="left", colWidths=[0.18, 0.82], loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(9.5)
    table.scale(1, 1.5)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#c9d1d9")
        cell.set_facecolor(DATA if column == 0 else "#ffffff" if row % 2 else "#f7f9fb")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def draw_quickstart(folder: Path, file: Path) -> None:
    """Draw four val images of a finished quickstart, evenly spaced in id, with the captions before and after."""
    before = {
        entry["image_id"]: entry["caption"]
        for entry in json.loads((folder / "base" / "predictions.json").read_text(encoding="utf-8"))
    }
    lines = (folder / "adapter_captions" / "per_image.jsonl").read_text(encoding="utf-8").splitlines()
    after = [json.loads(line) for line in lines]
    shown = after[:: max(1, len(after) // 4)][:4]
    figure, panels = pyplot.subplots(1, len(shown), figsize=(13, 4.6), layout="constrained", squeeze=False)
    for axes, entry in zip(panels[0], shown, strict=True):
        axes.imshow(pyplot.imread(entry["image"]))
        axes.axis("off")
        captions = ("before: ", before[entry["image_id"]]), ("after: ", entry["caption"])
        text = "\n".join(textwrap.fill(label + caption, 44) for label, caption in captions)
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets", help="folder to draw into")
    parser.add_argument("--quickstart", type=Path, help="output folder of a finished quickstart to draw")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.quickstart:
        draw_quickstart(args.quickstart, args.out / "quickstart.png")
        print(args.out / "quickstart.png")
    draw_model_card(args.out / "model_card.png")
    draw_train_config(args.out / "train_config.png")
    print(f"{args.out / 'model_card.png'}\n{args.out / 'train_config.png'}")


if __name__ == "__main__":
    main()
