"""Members of the family with another language model: the same way from training to a merged model."""

import json

import pytest
import torch
from transformers import AutoModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.adapter import choose_trainable, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.config_schema import check_config
from internvl.model.hf_config import check_expressible
from internvl.model.internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl.model.internvl_chat.configuration_internvl_chat import llm_architecture
from internvl.model.internvl_chat.sequence_layout import SequenceLayout
from internvl.model.loading import load_config, load_model
from internvl.model.packaging import write_chat_tokenizer, write_model_files
from tests.conftest import make_image

LIBRARY = {"Qwen2ForCausalLM": Qwen2ForCausalLM, "Qwen3ForCausalLM": Qwen3ForCausalLM}
FROZEN = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}


@pytest.fixture(scope="module", params=sorted(LIBRARY))
def member(request, tiny_base, tmp_path_factory):
    """A tiny checkpoint with random weights whose language model is the parameter's."""
    base, folder = load_model(tiny_base), tmp_path_factory.mktemp(request.param)
    config = base.model.config.to_dict()
    config["template"] = "internvl2_5"
    config["llm_config"] = {
        "architectures": [request.param], "model_type": request.param[:5].lower(), "hidden_size": 64, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "num_hidden_layers": 2,
        "vocab_size": len(base.tokenizer) + 5, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "attn_implementation": "flash_attention_2", "use_sliding_window": False, "max_position_embeddings": 4096,
    }  # fmt: skip
    if request.param == "Qwen2ForCausalLM":
        del config["llm_config"]["head_dim"]
    torch.manual_seed(0)
    model = InternVLChatModel(InternVLChatConfig.from_dict(config))
    model.generation_config.update(eos_token_id=base.tokenizer.convert_tokens_to_ids("<|im_end|>"), pad_token_id=2)
    model.save_pretrained(folder)
    write_chat_tokenizer(folder, base.tokenizer, "internvl2_5")
    write_model_files(folder, model.config)
    return folder


def test_it_computes_what_transformers_own_class_does(member):
    model, _ = load_model(member)
    own = model.language_model
    library = LIBRARY[llm_architecture(model.config.llm_config)](load_config(Checkpoint(member)).llm_config).eval()
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
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    trained = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in trained if "language_model" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    save_adapter(whole, tmp_path / "adapter", base=member, base_sha256=Checkpoint(member).sha256(), lora_dropout=0.0)
    write_chat_tokenizer(tmp_path / "adapter", tokenizer, "internvl2_5")
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


def test_what_is_not_there_yet_is_refused_by_name(member):
    with pytest.raises(UserError, match=r"llm_config is Qwen\dForCausalLM, which is not converted yet"):
        check_expressible(load_config(Checkpoint(member)), member / "config.json")
    with pytest.raises(ValueError, match="'Phi3ForCausalLM', a language model that is not supported"):
        InternVLChatConfig(llm_config={"architectures": ["Phi3ForCausalLM"]})


MEMBERS = (
    "InternVL2-1B", "InternVL2-8B", "InternVL2_5-1B", "InternVL2_5-2B", "InternVL2_5-4B", "InternVL2_5-8B",
    "InternVL3-1B", "InternVL3-2B", "InternVL3-8B",
    "InternVL3_5-1B", "InternVL3_5-2B", "InternVL3_5-4B", "InternVL3_5-8B",
)  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_each_published_config_gives_the_published_names_shapes_and_parameters(name, shared):
    [file, *_] = [
        shared / "family" / name / f"config{kind}.json"
        for kind in ("", ".transcribed", ".derived")
        if (shared / "family" / name / f"config{kind}.json").is_file()
    ]
    content = json.loads(file.read_text(encoding="utf-8"))
    check_config(content, file)
    config = InternVLChatConfig.from_dict(content)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    golden = json.loads(
        (shared / "reference_qwen2" / "keys" / f"keys_{name.lower().replace('-', '_')}.json").read_text()
    )
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    assert shapes == {key: shape for key, (shape, _) in golden["parameters"].items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["numel"]
