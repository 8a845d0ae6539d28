"""Token ids, labels and masks of every template; the tokenizer itself; decoding."""

import copy
import re
from pathlib import Path

import torch

from internvl.data.batch import Collator, Sample
from internvl.data.tokenize import RenderedRow, render_row, truncate_row
from internvl.data.turns import parse_turns
from internvl.errors import UserError
from internvl.model.internvl_chat import load_tokenizer
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import (
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    ConversationTemplate,
    Turn,
    get_conv_template,
    render_turns,
)
from tests.reference.golden import expand, read_json
from tests.reference.runner import Report

# The golden values' README allows to say that this one is not supported.
UNSUPPORTED_TEMPLATES = {"internvl_zh"}
# Special tokens that people write into their texts.
GROUNDING = re.compile(r"</?(quad|ref|box)>")
# What the original's slow tokenizer does to decoded text, in this order.
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"))
CLEAN_UP += ((" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


def run(report: Report, folder: Path, tokenizer) -> None:
    """Check ``tokens/``: ``tokenizer.json``, ``decode.json``, and the file of each template."""
    folder = folder / "tokens"
    family = folder.parents[1] / "family"
    if (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        if "vocab_len" in content:
            check_tokenizer(report, content, tokenizer)
        else:
            for name, golden in content.items():
                check_member_tokenizer(report, name, golden, family / name)
    if (folder / "decode.json").is_file():
        for number, item in enumerate(read_json(folder / "decode.json")["items"]):
            text = tokenizer.decode(item["ids"], skip_special_tokens=True)
            report.equal(f"decode/{number}", text, item["slow"])
            if "slow_chat_response" in item:
                report.equal(f"decode/{number}, as answer", text.strip(), item["slow_chat_response"])
    if (folder / "conversations.json").is_file():
        conversations = {item["name"]: item for item in read_json(folder / "conversations.json")}
        for path in sorted(folder.glob("*.json")):
            content = read_json(path)
            if "results" not in content:
                continue
            member = re.search(r"of (InternVL[\w-]+)$", content.get("tokenizer", ""))
            if member and not (family / member[1]).is_dir():
                report.skip(f"tokens/{path.stem}", f"its tokenizer {family / member[1]} is missing")
                continue
            own = load_tokenizer(family / member[1]) if member else tokenizer
            TemplateFile(report, path.stem, content, conversations, own).check()


def refuses_template(name: str) -> bool:
    """Whether asking for a template raises an error with its name."""
    try:
        get_conv_template(name)
    except ValueError as err:
        return name in str(err)
    return False


def check_tokenizer(report: Report, golden: dict, tokenizer) -> None:
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "padding_side"):
        report.equal(f"tokenizer/{key}", getattr(tokenizer, key), golden[key])
    report.equal("tokenizer/vocab_len", len(tokenizer), golden["vocab_len"])
    for token, index in golden["ids"].items():
        report.equal(f"tokenizer/{token}", tokenizer.convert_tokens_to_ids(token), index)
    for number, item in enumerate(golden["plain"]):
        ids = tokenizer(item["text"])["input_ids"]
        report.equal(f"tokenizer/plain {number}", ids, item["ids"])
        text, fast = tokenizer.decode(ids, skip_special_tokens=True), item["decode_skip_special"]
        cleaned = fast
        for before, after in CLEAN_UP:
            cleaned = cleaned.replace(before, after)
        if text == fast:
            report.check(f"tokenizer/plain {number}, decoded", True)
        else:  # the fast file drops a leading space, too
            note = f"{text[:60]!r} is not the cleaned-up {cleaned[:60]!r}"
            report.differs(
                f"tokenizer/plain {number}, decoded", "slow decoding", text in (cleaned, " " + cleaned), note
            )


def check_member_tokenizer(report: Report, name: str, golden: dict, folder: Path) -> None:
    """Compare the tokenizer of a Qwen member, built from its published files."""
    if not folder.is_dir():
        report.skip(f"tokenizer/{name}", f"its files {folder} are missing")
        return
    tokenizer = load_tokenizer(folder)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        report.equal(f"tokenizer/{name}/{key}", getattr(tokenizer, key), golden[key])
    report.equal(f"tokenizer/{name}/len", len(tokenizer), golden["len"])
    for token, index in golden["special"].items():
        report.equal(f"tokenizer/{name}/{token}", tokenizer.convert_tokens_to_ids(token), index)
    for text, ids in golden["encode"].items():
        report.equal(f"tokenizer/{name}/{text[:30]!r}", tokenizer(text)["input_ids"], ids)
        report.equal(f"tokenizer/{name}/{text[:30]!r}, decoded", tokenizer.decode(ids), text)


def pad_to(length: int, sample: RenderedRow, pad_token_id: int) -> dict[str, list[int]]:
    """Collate a sample with a row of ``length`` tokens; returns its ids, labels and mask."""
    rows = [sample, RenderedRow([pad_token_id] * length, [IGNORE_INDEX] * length)]
    samples = [
        Sample(torch.tensor(row.input_ids), torch.tensor(row.labels), tree=(len(row.input_ids), ())) for row in rows
    ]
    batch = Collator(pad_token_id=pad_token_id, image_size=1)(samples)
    return {key: batch[key][0].tolist() for key in ("input_ids", "labels", "attention_mask")}


class TemplateFile:
    """The results of one template, perhaps with a tokenizer of its own."""

    def __init__(self, report: Report, name: str, content: dict, conversations: dict[str, dict], tokenizer):
        self.report = report
        self.name = name
        self.content = content
        self.conversations = conversations
        missing = [
            token for token in re.findall(r"<\|\w+\|>", content.get("note", "")) if token not in tokenizer.get_vocab()
        ]
        if missing:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_tokens(missing, special_tokens=True)
        self.tokenizer = tokenizer
        self.image_token = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        written = [(expand(r["input_ids"]), r["name"]) for r in content["results"] if "input_ids" in r]
        tiles = {name: sum(item["num_tiles"]) for name, item in conversations.items()}
        self.num_image_token = max(
            (ids.count(self.image_token) // tiles[name] for ids, name in written if tiles[name]), default=0
        )
        # A file made without the leading <s> is compared behind ours.
        bos = tokenizer.bos_token_id
        self.lead = int(bos is not None and bool(written) and written[0][0][0] != bos)

    def check(self) -> None:
        template = self.content["template"]
        if template in UNSUPPORTED_TEMPLATES:
            note = "is not refused by name"
            self.report.differs(f"{self.name}/*", "unsupported template", refuses_template(template), note)
            return
        for result in self.content["results"]:
            case = f"{self.name}/{result['name']}/{result['max_length']}"
            case += "" if result["group_by_length"] else " padded"
            with self.report.guard(case):
                self.check_result(case, result, get_conv_template(template))

    def check_result(self, case: str, result: dict, template: ConversationTemplate) -> None:
        report, source = self.report, self.conversations[result["name"]]
        if problem := data_error(source["conversations"], self.tokenizer):
            refused = self.refuses(lambda: parse_turns(source["conversations"], "file:1"), "file:1: ")
            if "error" in result:
                report.check(case, refused, f"should be refused: {problem}")
            else:
                report.differs(case, "data error", refused, f"should be refused: {problem}")
            return
        turns = parse_turns(source["conversations"], "file:1")
        markers = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns)
        if markers != len(source["num_tiles"]):
            refused = self.refuses(lambda: self.render(template, turns, source), str(markers))
            report.differs(case, "marker count", refused, f"{markers} markers for {source['num_tiles']} are taken")
            return
        sample = self.render(template, turns, source)
        if "error" in result:
            system = turns[0].role == "system" and template.system_template.format(system_message=turns[0].value)
            holds = bool(system) and render_turns(template, turns)[0].text.startswith(system)
            holds = holds and self.teaches_answers(sample, template, turns)
            report.differs(case, "system turn", holds, f"system turn not rendered, or answers not taught ({system})")
            return
        self.check_sample(case, result, sample, template, turns)

    def check_sample(
        self, case: str, result: dict, sample: RenderedRow, template: ConversationTemplate, turns: list[Turn]
    ) -> None:
        """Cut, pad and compare a rendered sample."""
        report, limit = self.report, result["max_length"] + self.lead

        def cut() -> RenderedRow:
            return truncate_row(sample, limit, image_token_id=self.image_token, where="file:1")

        cut_short = len(sample.input_ids) > limit
        if cut_short and (
            self.image_token in sample.input_ids[limit:] or set(sample.labels[:limit]) == {IGNORE_INDEX}
        ):
            report.differs(case, "cut", self.refuses(cut, str(limit)), f"is cut to {limit} tokens")
            return
        taught = self.teaches_answers(sample, template, turns)
        padded = pad_to(max(result["length"] + self.lead, len(cut().input_ids)), cut(), self.tokenizer.pad_token_id)
        got = {key: values[self.lead :] for key, values in padded.items()}
        want = {key: expand(result[key]) for key in got}
        if got["input_ids"] != want["input_ids"] and self.keeps_spaces(want["input_ids"], turns):
            stripped = [turn._replace(value=turn.value.strip()) for turn in turns]
            same = sample == self.render(template, stripped, self.conversations[result["name"]])
            report.differs(
                case, "stripped values", same and taught, "values are neither stripped nor as in the original"
            )
        elif result["mismatch_warning"] and got["input_ids"] == want["input_ids"]:
            report.differs(case, "lost labels", taught, "not exactly the answers are taught")
        else:
            for key in got:
                report.equal(f"{case}/{key}", got[key], want[key])

    def render(self, template: ConversationTemplate, turns: list[Turn], source: dict) -> RenderedRow:
        return render_row(
            turns,
            source["num_tiles"],
            tokenizer=self.tokenizer,
            template=template,
            num_image_token=self.num_image_token,
        )

    def teaches_answers(self, sample: RenderedRow, template: ConversationTemplate, turns: list[Turn]) -> bool:
        """Whether exactly the answers and their end marks are taught."""
        answers = [turn.value.strip() + template.sep.strip() for turn in turns if turn.role == "gpt"]
        ids = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        taught = [label for label in sample.labels if label != IGNORE_INDEX]
        pairs = zip(sample.input_ids, sample.labels, strict=True)
        aligned = all(label in (IGNORE_INDEX, token) for token, label in pairs)
        return aligned and taught == [token for row in ids for token in row]

    def keeps_spaces(self, ids: list[int], turns: list[Turn]) -> bool:
        """Whether a golden sample holds a value with the space around it."""
        text = self.tokenizer.decode(ids)
        return any(turn.value in text for turn in turns if turn.value != turn.value.strip())

    @staticmethod
    def refuses(call, what: str) -> bool:
        """Whether a call raises an error of the user's that says ``what``."""
        try:
            call()
        except (UserError, ValueError) as err:
            return what in str(err)
        return False


def data_error(conversations: list[dict], tokenizer) -> str | None:
    """What is wrong with a conversation by the decided rules, or None."""
    roles = [turn["from"] for turn in conversations]
    asked = roles[1:] if roles[0] == "system" else roles
    if asked != ["human", "gpt"] * (len(asked) // 2):
        return f"turns are {', '.join(roles)}"
    # Marks of either tokenizer are reserved for all members, so that one data set trains each of them.
    reserved = {token for token in tokenizer.get_added_vocab() if not GROUNDING.fullmatch(token)} | {"<s>", "</s>"}
    for turn in conversations:
        if turn["from"] == "gpt" and not turn["value"].strip():
            return "an empty answer"
        if turn["from"] != "human" and IMAGE_PLACEHOLDER in turn["value"]:
            return "a marker outside the human turns"
        if found := sorted(token for token in reserved if token in turn["value"]):
            return f"the literal token {found[0]}"
    return None
