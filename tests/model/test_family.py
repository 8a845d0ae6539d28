"""Members of the family with another language model: the same way from training to a merged model."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.json_files import write_json
from internvl.model.adapter import choose_trainable, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.config_schema import UNSUPPORTED_LLMS, check_config
from internvl.model.internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl.model.internvl_chat.sequence_layout import SequenceLayout
from internvl.model.loading import load_config, load_model
from internvl.model.packaging import write_chat_tokenizer
from tests.conftest import make_image
from tests.model.tiny_members import FROZEN, QWEN, randomize_lora

LIBRARY = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}


@pytest.fixture(scope="module", params=QWEN)
def member(request, tiny_member, tmp_path_factory):
    """A tiny checkpoint with random weights whose language model is the parameter's."""
    folder = tmp_path_factory.mktemp("member") / request.param
    shutil.copytree(tiny_member(request.param), folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["llm_config"]["attn_implementation"] = "flash_attention_2"  # as published, and for the machine to choose
    write_json(folder / "config.json", content)
    return folder


def test_it_computes_what_transformers_own_class_does(member):
    model, _ = load_model(member)
    own = model.language_model
    library = LIBRARY[model.config.llm_config.model_type](load_config(Checkpoint(member)).llm_config).eval()
    library.load_state_dict(own.state_dict())
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        got, expected = (each(input_ids=ids, attention_mask=mask).logits for each in (own, library))
        assert (got - expected)[mask.bool()].abs().max() < 1e-5
        generated = [
            each.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=2)
            for each in (own, library)
        ]
    assert torch.equal(*generated)


def test_what_is_saved_has_the_rotary_base_where_every_version_looks_for_it(member, tmp_path):
    """transformers 4 reads rope_theta alone, and takes 10,000 in silence where it is missing."""
    model, _ = load_model(member)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["llm_config"]
    assert (saved["rope_theta"], saved["rope_scaling"]) == (1000000, None) and "rope_parameters" not in saved
    again = InternVLChatConfig.from_pretrained(tmp_path).llm_config
    assert again.rope_parameters == model.config.llm_config.rope_parameters


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_share_a_prefix_do_not_see_each_other(member, attention):
    model, _ = load_model(member, attn_implementation=attention)
    prefix, suffixes = torch.arange(10, 16), (torch.arange(20, 23), torch.arange(30, 35))
    packed = torch.cat([prefix, *suffixes, torch.arange(50, 54)])[None]
    layout = SequenceLayout(((6, (3, 5)), (4, ())))
    with torch.no_grad():
        together = model(input_ids=packed, layout=layout).logits[0]
        for start, suffix in zip((6, 9), suffixes, strict=True):
            alone = model(input_ids=torch.cat([prefix, suffix])[None]).logits[0, 6:]
            assert (together[start : start + len(suffix)] - alone).abs().max() < 1e-5
        assert (together[14:] - model(input_ids=torch.arange(50, 54)[None]).logits[0]).abs().max() < 1e-5


def test_an_adapter_merges_and_the_merged_folder_answers_alike(member, tmp_path, monkeypatch):
    model, tokenizer = load_model(member)
    whole = choose_trainable(model, **FROZEN, use_llm_lora=4, use_backbone_lora=2)
    randomize_lora(whole)
    trained = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in trained if "language_model" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    save_adapter(whole, tmp_path / "adapter", base=member, base_sha256=Checkpoint(member).sha256())
    write_chat_tokenizer(tmp_path / "adapter", tokenizer, model.config.template)
    merge_lora([str(tmp_path / "adapter"), str(tmp_path / "merged")])

    def answer(folder) -> str:
        engine = Engine.load(folder, precision="fp32", device="cpu", max_tiles=4)
        request = Request([engine.read(make_image(120, 60, 2))], "Describe it.")
        return engine.answer([request], max_new_tokens=12, do_sample=False)[0]

    assert answer(tmp_path / "adapter") == answer(tmp_path / "merged") != answer(member)
    monkeypatch.chdir(tmp_path)
    auto = AutoModel.from_pretrained(tmp_path / "merged", trust_remote_code=True, dtype=torch.float32).eval()
    ours, _ = load_model(tmp_path / "merged")
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        assert torch.equal(auto(input_ids=ids).logits, ours(input_ids=ids).logits)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_LLMS))
def test_a_language_model_that_is_not_supported_is_refused_with_the_reason(member, tmp_path, name):
    shutil.copytree(member, tmp_path / "odd")
    file = tmp_path / "odd" / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["llm_config"]["architectures"] = [name]
    write_json(file, content)
    with pytest.raises(UserError, match=f"{name}', which is not supported: .*Take a member with InternLM2"):
        load_config(Checkpoint(tmp_path / "odd"))


def test_a_sliding_window_is_refused(member, tmp_path):
    shutil.copytree(member, tmp_path / "odd")
    file = tmp_path / "odd" / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["llm_config"]["use_sliding_window"] = True
    write_json(file, content)
    with pytest.raises(UserError, match=r"llm_config\.use_sliding_window: is True. Give false"):
        load_config(Checkpoint(tmp_path / "odd"))


MEMBERS = (
    "InternVL2-1B", "InternVL2-8B", "InternVL2_5-1B", "InternVL2_5-2B", "InternVL2_5-4B", "InternVL2_5-8B",
    "InternVL3-1B", "InternVL3-2B", "InternVL3-8B",
    "InternVL3_5-1B", "InternVL3_5-2B", "InternVL3_5-4B", "InternVL3_5-8B",
)  # fmt: skip


def published_config(name: str, shared) -> dict:
    """config.json of a member: as found, or put together from other places."""
    kinds = ("", ".transcribed", ".derived")
    [file, *_] = [path for kind in kinds if (path := shared / "family" / name / f"config{kind}.json").is_file()]
    content = json.loads(file.read_text(encoding="utf-8"))
    check_config(content, file)
    return content


@pytest.mark.parametrize("name", MEMBERS)
def test_each_published_config_gives_the_published_names_shapes_and_parameters(name, shared):
    config = InternVLChatConfig.from_dict(published_config(name, shared))
    with torch.device("meta"):
        model = InternVLChatModel(config)
    golden = json.loads(
        (shared / "reference_qwen2" / "keys" / f"keys_{name.lower().replace('-', '_')}.json").read_text()
    )
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    assert shapes == {key: shape for key, (shape, _) in golden["parameters"].items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["numel"]


# What the original's own wrap adds at rank 16 (shared/family/FACTS.md); Qwen3 it could not wrap.
ORIGINALS_AT_16 = {
    "InternVL2-1B": 8_798_208, "InternVL2_5-1B": 8_798_208, "InternVL3-1B": 8_798_208, "InternVL2_5-4B": 29_933_568,
    "InternVL3-2B": 18_464_768, "InternVL3-8B": 40_370_176, "InternVL2_5-2B": 15_728_640, "InternVL2-8B": 37_748_736,
    "InternVL2_5-8B": 37_748_736,
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_lora_of_rank_128_trains_as_many_parameters_as_the_documentation_says(name, shared, repository):
    config = InternVLChatConfig.from_dict(published_config(name, shared))
    with torch.device("meta"):
        whole = choose_trainable(InternVLChatModel(config), **FROZEN, use_llm_lora=128)
    count = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    llm, heads = config.llm_config, config.llm_config.num_attention_heads
    width = getattr(llm, "head_dim", None) or llm.hidden_size // heads
    keys, hidden = llm.num_key_value_heads * width, llm.hidden_size
    shapes = [(hidden, heads * width), (hidden, keys), (hidden, keys), (heads * width, hidden)]
    if "InternLM2" in llm.architectures[0]:
        shapes = [(hidden, heads * width + 2 * keys), (heads * width, hidden)]
    shapes += [(hidden, llm.intermediate_size)] * 3
    assert count == 128 * llm.num_hidden_layers * sum(a + b for a, b in shapes)
    assert count == 8 * ORIGINALS_AT_16.get(name, count // 8)
    lines = (repository / "docs" / "family.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[3].strip() for line in lines if line.startswith(f"| {name} |")][-1] == f"{count:,}"
