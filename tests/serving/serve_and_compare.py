"""Start each server on what run.sh made, ask it through the ``openai`` client, and print how many captions are equal.

Runs in the servers' environment; called by run.sh: ``serve_and_compare.py WORK BASE [--only "ENGINE LAYOUT"]``.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from openai import OpenAI

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PROMPT = "Provide a one-sentence caption for the provided image."
NAME = "tuned"
VLLM = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--trust-remote-code"]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
SECONDS_TO_START = 600


def serve_commands(work: Path, base: Path, port: int) -> dict[tuple[str, str], tuple[list[str], str, Path, int]]:
    """Return (engine, layout) → command, name of the model there, checkpoint, requests at once."""
    vllm = [str(BIN / "vllm"), "serve"]
    place = ["--host", "127.0.0.1", "--port", str(port)]
    merged, hf, adapter = work / "merged", work / "hf", work / "adapter"
    lora = ["--enable-lora", "--max-lora-rank", "128", "--lora-modules", f"{NAME}={adapter}"]
    transformers = [str(BIN / "transformers"), "serve", str(hf), "--device", "cpu", "--dtype", "float32", *place]
    return {
        ("vllm", "merged"): ([*vllm, str(merged), "--served-model-name", NAME, *place, *VLLM], NAME, merged, 8),
        ("vllm", "base + adapter"): (
            [*vllm, str(base), "--served-model-name", "base", *place, *VLLM, *lora, "--hf-overrides",
             '{"max_dynamic_patch": 6}'],
            NAME, adapter, 8,
        ),
        ("vllm", "-hf"): ([*vllm, str(hf), "--served-model-name", NAME, *place, *VLLM], NAME, hf, 8),
        ("transformers serve", "-hf"): (transformers, str(hf), hf, 1),
    }  # fmt: skip


@contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[None]:
    """Run a server until the block ends; its output goes to ``log``."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
    try:
        started = time.monotonic()
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() - started > SECONDS_TO_START:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                sys.exit(f"{' '.join(command)}\ndid not start (status {process.poll()}):\n{tail}")
            time.sleep(0.5)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait()


def is_ready(url: str) -> bool:
    """Return whether a server answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as stream:
            return stream.status == 200
    except OSError:  # it does not listen yet, or is loading
        return False


def ask(url: str, model: str, image: Path) -> str:
    """Return a server's greedy caption of an image."""
    kind = "png" if image.suffix == ".png" else "jpeg"
    data = f"data:image/{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": PROMPT}]
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], max_tokens=30, temperature=0
    )
    return (answer.choices[0].message.content or "").strip()


def compare(url: str, model: str, result: Path, at_once: int) -> dict:
    """Ask for the captions of an evaluation's images; returns how many are equal, and the speed."""
    lines = [json.loads(line) for line in (result / "per_image.jsonl").read_text(encoding="utf-8").splitlines()]
    started = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        captions = list(pool.map(lambda line: ask(url, model, REPOSITORY / line["image"]), lines))
    seconds = time.monotonic() - started
    different = [
        {"image": line["image"], "evaluate.sh": line["caption"], "server": caption}
        for line, caption in zip(lines, captions, strict=True)
        if line["caption"] != caption
    ]
    return {
        "equal": len(lines) - len(different),
        "of": len(lines),
        "distinct": len(set(captions)),
        "captions_per_second": round(len(lines) / seconds, 2),
        "different": different,
    }


def project(*command: str) -> subprocess.CompletedProcess:
    """Run a command in the project's environment."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment["VIRTUAL_ENV"] = str(Path(os.environ["PROJECT_PYTHON"]).parent.parent)
    return subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True)


def check(url: str, model: str, checkpoint: Path) -> str:
    """Return what tools/check_serving.py says about a server."""
    tool = [os.environ["PROJECT_PYTHON"], "tools/check_serving.py", url, "--model", model]
    done = project(*tool, "--checkpoint", str(checkpoint))
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def evaluate(work: Path, layout: str) -> dict:
    """Run evaluate.sh --engine vllm, which starts a server of its own; returns how many captions are equal."""
    out = work / f"engine-{layout}"
    flags = ["--dynamic", "--precision", "fp32", "--min-new-tokens", "1", "--max-new-tokens", "30"]
    command = ["bash", "evaluate.sh", str(work / layout), "caption-habitat", *flags, "--engine", "vllm"]
    done = project(*command, "--batch-size", "25", "--out-dir", str(out))
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    own, other = (json.loads((f / "predictions.json").read_text()) for f in (work / "habitat", out))
    settings = json.loads((out / "scores.json").read_text())["settings"]
    return {
        "equal": sum(a == b for a, b in zip(own, other, strict=True)),
        "of": len(own),
        "captions_per_second": settings["images_per_second"],
    }


def print_table(rows: list[dict]) -> None:
    print(f"\n{'engine':26} {'layout':16} {'set':8} {'equal':>10} {'captions/s':>11}")
    for row in rows:
        equal = f"{row['equal']} of {row['of']}"
        print(f"{row['engine']:26} {row['layout']:16} {row['set']:8} {equal:>10} {row['captions_per_second']:>11}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--only", help='one "<engine> <layout>" of the table')
    args = parser.parse_args()
    work, base = args.work.resolve(), args.base.resolve()
    # transformers serve lists the models of the hub's cache, and fails without one.
    (work / "hub").mkdir(exist_ok=True)
    ENVIRONMENT["HF_HUB_CACHE"] = str(work / "hub")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    sets = [name for name in ("habitat", "photos") if (work / name).is_dir()]
    rows, checks = [], {}
    for (engine, layout), (command, model, checkpoint, at_once) in serve_commands(work, base, port).items():
        title = f"{engine} {layout}"
        if args.only not in (None, title):
            continue
        with running(command, url, work / f"{title.replace(' ', '-')}.log"):
            for name in sets:
                rows.append({"engine": engine, "layout": layout, "set": name,
                             **compare(url, model, work / name, at_once)})  # fmt: skip
            checks[title] = check(url, model, checkpoint)
            if layout == "base + adapter":
                checks["the base without its adapter"] = check(url, "base", checkpoint)
        print_table(rows)
    for layout in ("merged", "adapter"):
        if args.only in (None, f"evaluate.sh --engine vllm {layout}"):
            rows.append({"engine": "evaluate.sh --engine vllm", "layout": layout, "set": "habitat",
                         **evaluate(work, layout)})  # fmt: skip
    print_table(rows)
    print("\ncheck_serving:")
    for title, text in checks.items():
        print(f"  {title}: {text}")
    versions = {name: version(name) for name in ("vllm-cpu", "torch", "torchvision", "transformers", "openai")}
    content = {"rows": rows, "check_serving": checks, "versions": versions, "python": sys.version.split()[0]}
    (work / "serving.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{', '.join(f'{name} {number}' for name, number in versions.items())}\n{work / 'serving.json'}")
    right = [text for title, text in checks.items() if "without" not in title]
    wrong = [text for title, text in checks.items() if "without" in title]
    good = all(row["equal"] == row["of"] for row in rows) and all(" answers as " in text for text in right)
    sys.exit(0 if good and all("the base without its adapter" in text for text in wrong) else 1)


if __name__ == "__main__":
    main()
