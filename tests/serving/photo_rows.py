"""Write rows of the training format for the photos of a COCO-style folder: ``photo_rows.py FOLDER OUT``."""

import json
import sys
from pathlib import Path

PROMPT = "<image>\nProvide a one-sentence caption for the provided image."

folder, out = map(Path, sys.argv[1:3])
captions = json.loads((folder / "captions_val2017.json").read_text(encoding="utf-8"))
references: dict[int, str] = {}
for annotation in captions["annotations"]:
    references.setdefault(annotation["image_id"], annotation["caption"])
with open(out, "w", encoding="utf-8") as stream:
    for image in captions["images"]:
        if (folder / "images" / image["file_name"]).is_file() and image["id"] in references:
            turns = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": references[image["id"]]}]
            stream.write(json.dumps({"image": image["file_name"], "conversations": turns}) + "\n")
