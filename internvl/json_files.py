"""Writing JSON files: one form for all, each complete or as it was."""

import json
import os
from pathlib import Path


def write_json(file: Path, content: object) -> None:
    """Write JSON as checkpoints have it: two spaces, UTF-8, a newline at the end; beside, then renamed."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
