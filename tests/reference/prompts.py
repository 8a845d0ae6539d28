"""Prompts and answers of ``chat`` and ``batch_chat``, and the fields of every template."""

from dataclasses import asdict
from pathlib import Path

import torch

from internvl.model.internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN, get_conv_template
from tests.reference.golden import expand, expand_text, read_json
from tests.reference.runner import Report
from tests.reference.tokens import UNSUPPORTED_TEMPLATES, refuses_template

MARKER = "<image>"
TINY = {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    },
    "llm_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 8,
    },
}


def run(report: Report, folder: Path, tokenizer) -> None:
    """Check ``prompts/prompts.json``."""
    content = read_json(folder / "prompts" / "prompts.json")
    for kind, check in (("chat", check_chat), ("batch_chat", check_batch_chat)):
        for case in content.get(kind, []):
            name = f"{kind}/{case['name']}"
            if case["template"] in UNSUPPORTED_TEMPLATES:
                refused = refuses_template(case["template"])
                report.differs(name, "unsupported template", refused, f"{case['template']} is not refused by name")
                continue
            with report.guard(name):
                check(report, name, RecordingModel(case, content["num_image_token"], tokenizer), case, tokenizer)
    for name, fields in content.get("templates", {}).items():
        if name in UNSUPPORTED_TEMPLATES:
            refused = refuses_template(name)
            report.differs(f"templates/{name}", "unsupported template", refused, "is not refused by name")
            continue
        with report.guard(f"templates/{name}"):
            own = asdict(get_conv_template(name))
            own["roles"] = [own["user_prefix"], own["assistant_prefix"]]
            shared = {key: value for key, value in fields.items() if key in own}
            report.equal(f"templates/{name}", {key: own[key] for key in shared}, shared)


class RecordingModel(InternVLChatModel):
    """A chat model that records what it should generate from, and answers with the texts of the golden values."""

    def __init__(self, case: dict, num_image_token: int, tokenizer):
        super().__init__(InternVLChatConfig(**TINY, template=case["template"]))
        self.num_image_token = num_image_token
        self.system_message = case.get("system_message", self.system_message)
        texts = case.get("generated_texts", [case.get("generated_text", "")])
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        longest = max(map(len, ids))
        self.answer_ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        self.prompts: list[str] = []
        self.received: dict = {}

    def answer_prompts(self, tokenizer, pixel_values, prompts: list[str], generation_config: dict) -> list[str]:
        self.prompts = prompts
        return super().answer_prompts(tokenizer, pixel_values, prompts, generation_config)

    def generate(self, **received) -> torch.Tensor:
        self.received = received
        return self.answer_ids

    def ids(self) -> list[list[int]]:
        """The recorded token ids of each prompt, without padding."""
        rows = zip(self.received["input_ids"], self.received["attention_mask"], strict=True)
        return [ids[mask.bool()].tolist() for ids, mask in rows]

    def settings(self) -> dict:
        """The recorded settings of the generation."""
        inputs = ("pixel_values", "input_ids", "attention_mask")
        return {key: value for key, value in self.received.items() if key not in inputs}


def tiles(number: int | None) -> torch.Tensor | None:
    return None if number is None else torch.zeros(number, 3, 28, 28)


def check_chat(report: Report, name: str, model: RecordingModel, case: dict, tokenizer) -> None:
    settings, history = dict(case["generation_config"]), case["history"]
    arguments = (tokenizer, tiles(case["pixel_tiles"]), case["question"], settings)
    options = {"history": history, "return_history": True, "num_patches_list": case["num_patches_list"]}
    if problem := wrong_counts(case):
        decision, numbers = problem
        check_refusal(report, name, decision, numbers, lambda: model.chat(*arguments, **options))
        return
    response, history_out = model.chat(*arguments, **options)
    num_tokens = (case["pixel_tiles"] or 0) * model.num_image_token
    if expand_text(case["query"]).count(IMG_CONTEXT_TOKEN) != num_tokens:
        placed = model.prompts[0].count(IMG_CONTEXT_TOKEN)
        note = f"the prompt holds {placed} image tokens, not {num_tokens}"
        report.differs(name, "marker count", placed == num_tokens, note)
        return
    report.equal(f"{name}/query", model.prompts[0], expand_text(case["query"]))
    report.equal(f"{name}/input_ids", model.ids()[0], expand(case["input_ids"]))
    report.equal(f"{name}/response", response, case["response"])
    report.equal(f"{name}/history", [list(pair) for pair in history_out], case["history_out"])
    check_settings(report, name, model, case, settings)


def check_batch_chat(report: Report, name: str, model: RecordingModel, case: dict, tokenizer) -> None:
    settings = dict(case["generation_config"])
    responses = model.batch_chat(
        tokenizer,
        tiles(case["pixel_tiles"]),
        case["questions"],
        settings,
        num_patches_list=case["num_patches_list"],
    )
    report.equal(f"{name}/queries", model.prompts, [expand_text(query) for query in case["queries"]])
    masks = [expand(mask) for mask in case["attention_mask"]]
    rows = [expand(ids) for ids in case["input_ids"]]
    wanted = [
        [token for token, seen in zip(row, mask, strict=True) if seen] for row, mask in zip(rows, masks, strict=True)
    ]
    report.equal(f"{name}/input_ids", model.ids(), wanted)
    report.equal(f"{name}/responses", responses, case["responses"])
    check_settings(report, name, model, case, settings)


def check_settings(report: Report, name: str, model: RecordingModel, case: dict, passed: dict) -> None:
    """Compare what generation was told; the caller's dictionary must be as it was."""
    report.equal(f"{name}/generate_kwargs", model.settings(), case["generate_kwargs"])
    untouched = passed == case["generation_config"]
    if case["generation_config_after_call"] == case["generation_config"]:
        report.check(f"{name}/generation_config", untouched, "the caller's dictionary was changed")
    else:
        note = "the caller's dictionary was changed"
        report.differs(f"{name}/generation_config", "caller's config", untouched, note)


def wrong_counts(case: dict) -> tuple[str | None, list[int]] | None:
    """Whether a case has to be refused: (the decision, None where the original refuses too; both counts)."""
    images = case["num_patches_list"]
    if images is None:
        images = [] if case["pixel_tiles"] is None else [case["pixel_tiles"]]
    if sum(images) != (case["pixel_tiles"] or 0):
        return (None if "error" in case else "marker count"), [sum(images), case["pixel_tiles"]]
    questions = [question for question, _ in case["history"] or []] + [case["question"]]
    if not case["history"] and images and MARKER not in questions[0]:
        questions[0] = MARKER + questions[0]
    markers = sum(question.count(MARKER) for question in questions)
    return ("marker count", [markers, len(images)]) if markers != len(images) else None


def check_refusal(report: Report, name: str, decision: str | None, numbers: list[int], call) -> None:
    """The call must raise ValueError and name both counts."""
    try:
        call()
        message = ""
    except ValueError as err:
        message = str(err)
    holds = bool(message) and all(str(number) in message for number in numbers)
    note = f"should be refused with the counts {numbers}, said {message[:80]!r}"
    if decision is None:
        report.check(name, holds, note)
    else:
        report.differs(name, decision, holds, note)
