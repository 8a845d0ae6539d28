"""Caption images with a checkpoint through transformers alone: nothing of this repository is imported.

    cd /anywhere && python /path/to/tools/caption_with_automodel.py MODEL IMAGE [IMAGE ...] [--json FILE]

What a user of the merged folder does: ``AutoModel`` and ``AutoProcessor`` run the model files inside it. ``--json``
writes the captions as ``[{"image_id", "caption"}]``, ids being the digits behind the last underscore of the file
names.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

PROMPT = "Provide a one-sentence caption for the provided image."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="merged model folder; its model files are run, so use one you trust")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write the captions here instead of printing them")
    parser.add_argument("--max-num", type=int, help="most tiles of an image (default: the model's)")
    args = parser.parse_args(argv)
    model = AutoModel.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    settings = {"min_new_tokens": 8, "max_new_tokens": 30, "do_sample": False}
    captions = []
    for image in args.images:
        pixel_values = processor.image_processor(image, max_dynamic_patch=args.max_num)["pixel_values"]
        caption = model.chat(processor.tokenizer, pixel_values, PROMPT, settings)
        captions.append({"image_id": int(image.stem.rsplit("_", 1)[-1]), "caption": caption})
        if not args.json:
            print(f"{image.name}: {caption}")
    if args.json:
        args.json.write_text(json.dumps(captions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
