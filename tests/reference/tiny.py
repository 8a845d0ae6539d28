"""Tiny models: image features, logits, losses, gradients and generated ids of every variant."""

import re
import tempfile
from pathlib import Path

import torch

from internvl.model.internvl_chat import InternVLChatModel
from internvl.model.loading import load_model
from tests.reference.golden import fields_of, find_image_token, read_json, read_tensors, write_checkpoint
from tests.reference.runner import Report

# Tolerances of the golden values' README (float32 on CPU).
FEATURES, LOGITS, LOSS, GRAD_NORM, GRADIENT = 2e-5, 1e-4, 2e-5, 2e-5, 5e-5
BF16_LOGITS, BF16_LOSS = 0.2, 0.02
# Cases that are another one with this input added; elsewhere the input is left out.
EXTRA_INPUTS = ("loss_weight", "position_ids")


def run(report: Report, folder: Path) -> None:
    """Check every variant of ``tiny/``."""
    for expected_file in sorted((folder / "tiny").glob("*/expected.json")):
        variant = expected_file.parent
        with report.guard(variant.name), tempfile.TemporaryDirectory() as temporary:
            Variant(report, variant, Path(temporary)).check()


class Variant:
    """One variant: its files, and a loaded model."""

    def __init__(self, report: Report, folder: Path, temporary: Path):
        self.report = report
        self.folder = folder
        self.expected = read_json(folder / "expected.json")
        self.tensors = read_tensors(folder / "expected.safetensors")
        self.inputs = read_tensors(folder.parent / self.expected["inputs"])
        weights = read_tensors(folder.parent / self.expected["weights"])
        self.checkpoint = write_checkpoint(temporary / "model", read_json(folder / "config.json"), weights)
        self.model = self.load()

    def load(self, **options) -> InternVLChatModel:
        model = load_model(self.checkpoint, **options).model
        model.img_context_token_id = find_image_token(self.inputs, model.num_image_token)
        return model

    def name(self, case: str) -> str:
        return f"{self.folder.name}/{case}"

    def case_inputs(self, case: str) -> dict[str, torch.Tensor]:
        """The model's inputs of a forward case; ``<case>_<extra input>`` is that case with the input added."""
        extra = next((extra for extra in EXTRA_INPUTS if case.endswith("_" + extra)), None)
        fields = fields_of(self.inputs, case.removesuffix(f"_{extra}") if extra else case)
        return {key: value for key, value in fields.items() if key not in EXTRA_INPUTS or key == extra}

    def check(self) -> None:
        cases = list(self.expected["forward"])
        cases += [name[: -len(".loss")] for name in self.tensors if name.endswith(".loss")]
        for case in dict.fromkeys(cases):
            inputs = self.case_inputs(case)
            with self.report.guard(self.name(case)):
                if "input_ids" in inputs:
                    self.check_forward(case, inputs)
                elif "stateful" in case:
                    self.check_stateless(case)
                else:
                    self.report.check(self.name(case), False, "has no inputs")
        self.check_other_sizes()
        for key, golden in self.expected.get("generate", {}).items():
            with self.report.guard(self.name(key)):
                self.check_generation(key, golden)
        if (self.folder / "bf16.json").is_file():
            with self.report.guard(self.name("bf16")):
                self.check_bf16()

    def check_forward(self, case: str, inputs: dict[str, torch.Tensor]) -> None:
        report, model = self.report, self.model
        features = self.tensors.get(f"{case}.vit_embeds")
        if features is not None:
            with torch.no_grad():
                report.close(
                    self.name(f"{case}/vit_embeds"), model.extract_feature(inputs["pixel_values"]), features, FEATURES
                )
        num_tokens = int((inputs["input_ids"] == model.img_context_token_id).sum())
        num_features = int(inputs["image_flags"].sum()) * model.num_image_token
        if num_tokens < num_features:
            message = ""
            try:
                model(**inputs)
            except ValueError as err:
                message = str(err)
            named = all(re.search(rf"\b{number}\b", message) for number in (num_tokens, num_features))
            note = f"should refuse {num_tokens} tokens for {num_features} features, said {message[:80]!r}"
            report.differs(self.name(case), "feature count", named, note)
            return
        model.zero_grad()
        outputs = model(**inputs)
        self.check_logits(case, outputs.logits, inputs["attention_mask"])
        golden = self.expected["forward"].get(case, {})
        loss = golden.get("loss", self.tensors[f"{case}.loss"].item() if f"{case}.loss" in self.tensors else None)
        if loss is not None:
            report.within(self.name(f"{case}/loss"), abs(outputs.loss.item() - loss), LOSS)
        outputs.loss.backward()
        if "grad_norms" in golden:
            compare_grad_norms(report, self.name(f"{case}/grad_norms"), model, golden["grad_norms"])
        compare_gradients(report, self.name(case), model, fields_of(self.tensors, f"{case}.grad"))

    def check_logits(self, case: str, logits: torch.Tensor, mask: torch.Tensor) -> None:
        """Compare the stored columns (``logits``, ``logits_every<n>``) where a token is."""
        for field, golden in fields_of(self.tensors, case).items():
            if match := re.fullmatch(r"logits(?:_every(\d+))?", field):
                columns = logits.detach()[..., :: int(match[1] or 1)]
                self.report.close(self.name(f"{case}/{field}"), columns[mask.bool()], golden[mask.bool()], LOGITS)

    def check_stateless(self, case: str) -> None:
        """After a longer call the model still answers like a fresh one."""
        third = next(golden for name, golden in self.tensors.items() if name.startswith("stateful"))
        cases = [name for name in self.expected["forward"] if "input_ids" in self.case_inputs(name)]
        short = next(name for name in cases if self.inputs[f"{name}.input_ids"].shape == third.shape[:2])
        longest = max(cases, key=lambda name: self.case_inputs(name)["input_ids"].shape[1])
        with torch.no_grad():
            fresh = self.load()(**self.case_inputs(short)).logits
            self.model(**self.case_inputs(longest))
            again = self.model(**self.case_inputs(short)).logits
        difference = (again - fresh).abs().max().item()
        note = f"{short} after {longest} differs by {difference:.1e} from a fresh model's"
        self.report.differs(self.name(case), "stateless rotary", difference <= LOGITS, note)

    def check_other_sizes(self) -> None:
        """Features of tiles of other sizes, and positions resized in place."""
        by_case = {name[: -len(".vit_embeds")]: golden for name, golden in self.tensors.items()}
        for case, golden in by_case.items():
            name = self.name(case)
            if re.fullmatch(r"interp\d+", case):
                with self.report.guard(name), torch.no_grad():
                    features = self.model.extract_feature(self.inputs[f"{case}.pixel_values"])
                    self.report.close(f"{name}/vit_embeds", features, golden, FEATURES)
            elif match := re.fullmatch(r"resize_pos_\d+_(\d+)", case):
                with self.report.guard(name), torch.no_grad():
                    side = int(match[1])
                    pixels = next(t for n, t in self.inputs.items() if n.startswith("interp") and t.shape[-1] == side)
                    resized = self.load()
                    resized.vision_model.resize_pos_embeddings(side)
                    positions = resized.vision_model.embeddings.position_embedding
                    self.report.close(
                        f"{name}/positions", positions, self.tensors[f"{case}.position_embedding"], FEATURES
                    )
                    self.report.close(f"{name}/vit_embeds", resized.extract_feature(pixels), golden, FEATURES)

    def check_generation(self, key: str, golden: dict) -> None:
        """Stored sequences start with an artificial id that was never fed to the model; ours hold new tokens only."""
        inputs = fields_of(self.inputs, f"gen.{key.split('|')[0]}")
        arguments = dict(golden["args"])
        sequences = self.model.generate(**inputs, **arguments)
        self.report.equal(self.name(key), sequences.tolist(), [row[1:] for row in golden["sequences"]])
        self.report.check(self.name(f"{key}/args"), arguments == golden["args"], "the caller's arguments were changed")

    def check_bf16(self) -> None:
        """Half precision, with the attention of the golden values: other kernels round elsewhere."""
        golden, tensors = read_json(self.folder / "bf16.json"), read_tensors(self.folder / "bf16.safetensors")
        logits_name = next(name for name in tensors if name.startswith("logits"))
        step = int((re.search(r"\d+", logits_name) or ["1"])[0])
        shape, tiles = tensors[logits_name].shape[:2], tensors["vit_embeds"].shape[0]
        case = next(
            name
            for name in self.expected["forward"]
            if (inputs := self.case_inputs(name)).get("input_ids", torch.empty(0)).shape == shape
            and len(inputs["pixel_values"]) == tiles
        )
        inputs, model = self.case_inputs(case), self.load(dtype=torch.bfloat16, attn_implementation="eager")
        with torch.no_grad():
            outputs = model(**inputs)
            features = model.extract_feature(inputs["pixel_values"])
        mask = inputs["attention_mask"].bool()
        self.report.close(self.name("bf16/vit_embeds"), features, tensors["vit_embeds"], BF16_LOGITS)
        self.report.close(
            self.name(f"bf16/{logits_name}"),
            outputs.logits[..., ::step][mask],
            tensors[logits_name][mask],
            BF16_LOGITS,
        )
        self.report.within(self.name("bf16/loss"), abs(outputs.loss.item() - golden["loss"]), BF16_LOSS)


def compare_grad_norms(report: Report, name: str, model: torch.nn.Module, golden: dict[str, float | None]) -> None:
    """Compare the norm of every parameter's gradient, relatively; None: no gradient may reach it."""
    parameters = dict(model.named_parameters())
    unknown = sorted(golden.keys() - parameters.keys())
    if unknown:
        report.check(name, False, f"the model has no parameter {unknown[0]}")
        return
    reached = [key for key, norm in golden.items() if norm is None and grad_norm(parameters[key]) > 0]
    report.check(f"{name}/none", not reached, f"a gradient reaches {reached[:1]}")
    worst = max(
        (abs(grad_norm(parameters[key]) - norm) - 1e-7) / norm if norm else grad_norm(parameters[key])
        for key, norm in golden.items()
        if norm is not None
    )
    report.within(name, max(worst, 0.0), GRAD_NORM)


def grad_norm(parameter: torch.nn.Parameter) -> float:
    return 0.0 if parameter.grad is None else parameter.grad.norm().item()


def compare_gradients(report: Report, name: str, model: torch.nn.Module, golden: dict[str, torch.Tensor]) -> None:
    """Compare whole gradients, relative to their largest entry."""
    parameters = dict(model.named_parameters())
    for key, gradient in golden.items():
        scale = gradient.abs().max()
        report.close(f"{name}/grad.{key}", parameters[key].grad / scale, gradient / scale, GRADIENT)
