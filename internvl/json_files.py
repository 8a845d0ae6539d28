"""Writing JSON files: one form for all."""

import json
from pathlib import Path


def write_json(file: Path, content: object) -> None:
    """Write JSON as checkpoints have it: two spaces, UTF-8, a newline at the end."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
