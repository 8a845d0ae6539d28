"""What docs/security.md promises, each promise by its test."""

import ast
import json
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from internvl.commands import check_data, merge_lora
from internvl.data.media import media_path, read_image, read_image_size
from internvl.data.problems import RowError
from internvl.errors import UserError
from internvl.evaluation.report import ReportRow, ReportTable, write_report
from internvl.limits import MAX_PIXELS
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from tests.conftest import REPOSITORY, make_image
from tests.faults.corpus import lying_images

NASTY = "</script><img src=x onerror=alert(1)>\"'&"
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\n"


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """(file:line, call) of every ``<anything>.<name>(…)`` in the programs."""
    found = []
    for folder in ("internvl", "tools", "eval", "benchmarks"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                    found.append((f"{file.relative_to(REPOSITORY)}:{node.lineno}", node))
                elif isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    assert not {part.split(".")[0] for part in names} & {"pickle", "dill", "joblib", "shelve"}, file
    return found


def test_nothing_is_unpickled():
    safe = {"torch": ("weights_only", True), "np": ("allow_pickle", False)}
    loads = [(where, call) for where, call in calls("load") if getattr(call.func.value, "id", None) in safe]
    assert loads
    for where, call in loads:
        key, value = safe[call.func.value.id]
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert key in given and given[key].value is value, where


@pytest.mark.parametrize("lifts_limit", [False, True])
def test_images_are_bounded_in_pixels(tmp_path, monkeypatch, lifts_limit):
    if lifts_limit:  # as some libraries do
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for number, content in enumerate(lying_images(60_000, 60_000)):
        file = tmp_path / f"bomb{number}"
        file.write_bytes(content)
        for reader in (read_image_size, read_image):
            with pytest.raises(RowError, match=rf"^rows:1: .*(more than {MAX_PIXELS:,} pixels|cannot be read)"):
                reader(file, "rows:1")
    assert MAX_PIXELS * 3 < 1 << 30


def test_paths_are_confined_to_the_root(sandbox):
    for name in ("../outside.png", "link.png", "linked/outside.png", "film_linked", str(sandbox.out), "film/../.."):
        with pytest.raises(RowError, match="out of the data set's root"):
            media_path(sandbox.inputs, name, "rows:1")
        assert media_path(sandbox.inputs, name, "rows:1", allow_outside_root=True)
    (sandbox.inputs / "inner.png").symlink_to("film/1.png")
    for name in ("good.png", "film", "film/../good.png", "./good.png", "inner.png", str(sandbox.inputs / "good.png")):
        assert media_path(sandbox.inputs, name, "rows:1").exists()
    # The root may be a link itself.
    (sandbox.out / "root").symlink_to(sandbox.inputs)
    assert media_path(sandbox.out / "root", "film/1.png", "rows:1").exists()


def test_an_index_names_files_of_its_folder_only(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.move(tmp_path / "base" / "model.safetensors", tmp_path)
    index = tmp_path / "base" / "model.safetensors.index.json"
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors"), "config.json", "", None):
        index.write_text(json.dumps({"weight_map": {"mlp1.0.bias": name}}))
        with pytest.raises(UserError, match="weight_map: 'mlp1.0.bias' is in .*not a weight file of this folder"):
            load_model(tmp_path / "base")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("llm_config", "hidden_size", 10**12),
        ("llm_config", "num_hidden_layers", 10**6),
        ("vision_config", "image_size", -1),
        ("vision_config", "num_labels", 10**10),
        (None, "max_dynamic_patch", 10**6),
        (None, "downsample_ratio", 1e-9),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(tiny_base, tmp_path, part, field, value):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    content = json.loads((folder / "config.json").read_text())
    (content[part] if part else content)[field] = value
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config\.json:{part + '.' if part else ''}{field}: is {value}\. Give "):
        load_model(folder)


def test_weights_of_other_shapes_than_the_config_says_are_refused(tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["mlp1.1.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"mlp1\.1\.bias has shape \(3,\), and config\.json makes it \(64,\)"):
        load_model(folder)


class Elements(HTMLParser):
    """The elements of a page by name, and the text of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes |= {name for name, _ in attributes}


def test_reports_escape_what_they_show(tmp_path):
    file = tmp_path / f"{NASTY.replace('/', '')}.png"
    make_image(60, 40, 1).save(file)

    def report(text: str, image: Path) -> Elements:
        rows = [
            ReportRow(
                images=[image],
                image_id=text,
                references=[text],
                predictions={text: text, f"{text} 2": text},
                scores={"CIDEr": 0.5},
                change=0.1,
            )
        ]
        write_report(
            tmp_path / "report.html",
            title=text,
            scores={text: 0.5},
            rows=rows,
            provenance={text: text},
            intervals={text: (0.1, 0.9)},
            notes=[text],
            tables=[ReportTable(text, (text,), [(text,)])],
        )
        return Elements((tmp_path / "report.html").read_text(encoding="utf-8"))

    plain_file = tmp_path / "plain.png"
    shutil.copy(file, plain_file)
    nasty, plain = report(NASTY, file), report("plain", plain_file)
    assert nasty.names == plain.names and nasty.attributes == plain.attributes
    assert "onerror" not in nasty.attributes


def test_previews_escape_what_they_show(tmp_path, tiny_base):
    def preview(name: str) -> Elements:
        folder = tmp_path / name.replace("/", "")
        folder.mkdir()
        make_image(60, 40, 1).save(folder / "a.png")
        turns = [{"from": "human", "value": f"<image>\n{name}"}, {"from": "gpt", "value": name}]
        (folder / "rows.jsonl").write_text(json.dumps({"id": name, "image": "a.png", "conversations": turns}))
        meta = {name: {"root": str(folder), "annotation": str(folder / "rows.jsonl")}}
        (folder / "meta.json").write_text(json.dumps(meta))
        page = tmp_path / "preview.html"
        assert check_data.main([str(folder / "meta.json"), "--model", str(tiny_base), "--preview", str(page)]) == 0
        return Elements(page.read_text(encoding="utf-8"))

    nasty, plain = preview(NASTY), preview("plain")
    assert nasty.names.count("script") == plain.names.count("script") == 1
    assert nasty.names.count("img") == plain.names.count("img")
    assert nasty.attributes == plain.attributes and "onerror" not in nasty.attributes


@pytest.fixture
def no_network(monkeypatch) -> list:
    """What tried to reach the network; it gets an error."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments[-1])
        raise OSError("the network is not to be used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tried


@pytest.mark.slow
def test_no_network_is_used(no_network, tiny_base, adapter_folder, rows_folder, tmp_path, monkeypatch, repository):
    from internvl.commands import evaluate_caption

    assert merge_lora.main([str(adapter_folder), str(tmp_path / "merged")]) is None
    assert load_model(tmp_path / "merged").tokenizer
    rows = ["--annotation", str(rows_folder / "train.jsonl"), "--root", str(rows_folder)]
    limits = ["--limit", "2", "--max-new-tokens", "2", "--out-dir", str(tmp_path / "result")]
    evaluate_caption.main(["--checkpoint", str(adapter_folder), *rows, *limits])
    assert (tmp_path / "result" / "report.html").is_file()
    # A name that is not a folder is not looked for on a hub.
    with pytest.raises(UserError, match="there is no such checkpoint folder"):
        Checkpoint("OpenGVLab/InternVL2-2B")
    assert no_network == []


def test_code_in_a_checkpoint_folder_is_not_run(tiny_base, adapter_folder, tmp_path):
    folder, marker = tmp_path / "base", tmp_path / "was_run"
    shutil.copytree(tiny_base, folder)
    (folder / "custom_generate").mkdir()
    code = CODE.format(marker=str(marker))
    for file in [*folder.glob("*.py"), folder / "custom_generate" / "generate.py", folder / "__init__.py"]:
        file.write_text(code)
    for name, entry in (
        ("config.json", {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": entry, "tokenizer_class": "InternLM2Tokenizer"}))
    model, tokenizer = load_model(folder)
    model.generate(input_ids=tokenizer("Hello", return_tensors="pt")["input_ids"], max_new_tokens=2)
    assert not marker.exists()
    # Nor does a merge take it along: the merged folder gets our files.
    adapter = tmp_path / "adapter"
    shutil.copytree(adapter_folder, adapter)
    content = json.loads((adapter / "adapter_config.json").read_text())
    content["base_model_name_or_path"] = str(folder)
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    merge_lora.main([str(adapter), str(tmp_path / "merged")])
    assert not marker.exists()
    assert code not in {file.read_text() for file in (tmp_path / "merged").rglob("*.py")}


@pytest.mark.parametrize("name", ["../../../up", "/etc/up", "..", "a/b", ".hidden"])
def test_names_of_data_sets_do_not_lead_out_of_the_results(name, repository, monkeypatch):
    from internvl.commands import evaluating
    from internvl.evaluation.datasets import CaptionSet

    args = evaluating.make_parser("").parse_args(["--checkpoint", "pretrained/InternVL2-Tiny", "--datasets", "x"])
    folder = evaluating.result_folder(args, "caption", CaptionSet(name, [], {}))
    assert folder.parts[0] == "results" and len(folder.parts) == 4 and ".." not in folder.parts
