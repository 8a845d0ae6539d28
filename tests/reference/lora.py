"""LoRA embedded in a whole checkpoint: loss, gradients, optimizer steps, generation, and the merge."""

import tempfile
from pathlib import Path

import torch

from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat import InternVLChatModel
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from tests.reference.golden import fields_of, find_image_token, read_json, read_tensors, write_checkpoint
from tests.reference.runner import Report
from tests.reference.tiny import (
    EXTRA_INPUTS,
    LOGITS,
    LOSS,
    compare_grad_norms,
    compare_gradients,
)

# What the golden values' README says of the optimizer, and its tolerances of the merge.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
TOTAL_NORM, MERGE_FP32 = 2e-5, 1e-6
BF16 = 2.0**-8  # largest relative error of rounding to bfloat16
SCALING = 2.0  # alpha / rank, which the original fixes
# Three steps of 1e-3 that agree to about one part in a thousand.
AFTER_STEPS = 5e-6


def run(report: Report, folder: Path) -> None:
    """Check every folder of ``lora/``; the inputs are those of the tiny models."""
    for expected_file in sorted((folder / "lora").glob("*/expected.json")):
        source = expected_file.parent
        inputs_file = folder / "tiny" / read_json(expected_file).get("inputs", "inputs_scale1.safetensors")
        if not inputs_file.is_file():
            report.skip(f"lora/{source.name}", f"its inputs {inputs_file} are missing")
            continue
        with report.guard(source.name), tempfile.TemporaryDirectory() as temporary:
            LoraCase(report, source, read_tensors(inputs_file), Path(temporary)).check()


class LoraCase:
    """One checkpoint with LoRA inside, its golden values and the inputs."""

    def __init__(self, report: Report, folder: Path, inputs: dict[str, torch.Tensor], temporary: Path):
        self.report = report
        self.folder = folder
        self.inputs = inputs
        self.temporary = temporary
        self.expected = read_json(folder / "expected.json")
        self.tensors = read_tensors(folder / "expected.safetensors")
        self.weights = read_tensors(folder / "weights.safetensors")
        self.checkpoint = write_checkpoint(temporary / "model", read_json(folder / "config.json"), self.weights)
        self.first_batch = self.expected["adamw_fixed_batch"]["batches"][0]

    def load(self, folder: Path | None = None) -> InternVLChatModel:
        model = load_model(folder or self.checkpoint).model
        model.img_context_token_id = find_image_token(self.inputs, model.num_image_token)
        return model

    def batch(self, case: str) -> dict[str, torch.Tensor]:
        return {key: value for key, value in fields_of(self.inputs, case).items() if key not in EXTRA_INPUTS}

    def name(self, case: str) -> str:
        return f"{self.folder.name}/{case}"

    def check(self) -> None:
        model = self.load()
        self.report.equal(self.name("state_dict_keys"), sorted(model.state_dict()), sorted(self.weights))
        for check in (self.check_forward, self.check_training, self.check_generation, self.check_merge):
            with self.report.guard(self.name(check.__name__.removeprefix("check_"))):
                check()

    def check_forward(self) -> None:
        model, batch = self.load(), self.batch(self.first_batch)
        train_lora_alone(model)
        outputs = model(**batch)
        outputs.loss.backward()
        self.report.within(self.name("loss"), abs(outputs.loss.item() - self.expected["loss"]), LOSS)
        compare_grad_norms(self.report, self.name("grad_norms"), model, self.expected["grad_norms"])
        compare_gradients(self.report, self.folder.name, model, fields_of(self.tensors, "grad"))
        mask = batch["attention_mask"].bool()
        for key, golden in self.tensors.items():
            if key.startswith("logits"):
                columns = outputs.logits.detach()[..., :: int(key.removeprefix("logits_every") or 1)]
                self.report.close(self.name(key), columns[mask], golden[mask], LOGITS)

    def check_training(self) -> None:
        """Train on each recorded order of batches; the loss before each step, and after the last on its batch."""
        for run_name in [key for key in self.expected if key.startswith("adamw_")]:
            golden = self.expected[run_name]
            losses, norms, model = self.train(golden["batches"])
            wanted = golden["losses_before_each_step_and_after_last"]
            worst = max(abs(got - want) for got, want in zip(losses, wanted, strict=True))
            self.report.within(self.name(f"{run_name}/losses"), worst, LOSS)
            pairs = zip(norms, golden["total_grad_norms"], strict=True)
            worst = max(abs(got - want) / want for got, want in pairs)
            self.report.within(self.name(f"{run_name}/total_grad_norms"), worst, TOTAL_NORM)
            if len(set(golden["batches"])) == 1:
                parameters = dict(model.named_parameters())
                for key, weight in fields_of(self.tensors, f"after{len(norms)}").items():
                    self.report.close(self.name(f"{run_name}/{key}"), parameters[key].detach(), weight, AFTER_STEPS)

    def train(self, batches: list[str]) -> tuple[list[float], list[float], InternVLChatModel]:
        """Step on all batches but the last; returns the losses on all, the gradient norms, and the model."""
        model = self.load()
        trained = train_lora_alone(model)
        optimizer = torch.optim.AdamW(trained, **ADAMW)
        losses, norms = [], []
        for number, case in enumerate(batches):
            loss = model(**self.batch(case)).loss
            losses.append(loss.item())
            if number < len(batches) - 1:
                optimizer.zero_grad()
                loss.backward()
                norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in trained]).item())
                optimizer.step()
        return losses, norms, model

    def check_generation(self) -> None:
        for key in [key for key in self.expected if key.startswith("generate_")]:
            golden = self.expected[key]["sequences"]
            sequences = self.load().generate(
                **fields_of(self.inputs, f"gen.{key.removeprefix('generate_')}"),
                max_new_tokens=len(golden[0]) - 1,
                do_sample=False,
            )
            self.report.equal(self.name(key), sequences.tolist(), [row[1:] for row in golden])

    def check_merge(self) -> None:
        report, name, checkpoint = self.report, self.name, Checkpoint(self.checkpoint)
        exact, half = self.temporary / "merged", self.temporary / "merged_bf16"
        changed = merge_checkpoint(checkpoint, exact, dtype="float32")
        report.equal(name("merge/number of changed tensors"), changed, len(self.expected["merged_changed_keys"]))
        merged = read_tensors(exact / "model.safetensors")
        report.equal(name("merge/keys"), sorted(merged), sorted(self.expected["merged_all_keys"]))
        config = read_json(exact / "config.json")
        report.equal(name("merge/use_llm_lora"), config["use_llm_lora"], 0)
        for file in sorted(self.folder.glob("merged_fp32*.safetensors")):
            for key, weight in read_tensors(file).items():
                report.close(name(f"merge fp32/{key}"), merged[key], weight, MERGE_FP32)
        loss = self.load(exact)(**self.batch(self.first_batch)).loss.item()
        report.within(name("merge/loss"), abs(loss - self.expected["loss_after_fp32_merge"]), LOSS)

        merge_checkpoint(checkpoint, half, dtype="bfloat16")
        merged_half = read_tensors(half / "model.safetensors")
        for file in sorted(self.folder.glob("merged_bf16*.safetensors")):
            self.check_bf16_merge(merged_half, read_tensors(file))

    def check_bf16_merge(self, half: dict[str, torch.Tensor], golden: dict[str, torch.Tensor]) -> None:
        """Ours is rounded once; it may be off by what the original rounds: W, A, B, their product, and the sum."""
        report, name = self.report, self.name
        for key, weight in golden.items():
            stored = stored_name(self.weights, key)
            before, ours, theirs = self.weights[stored], half[key].float(), weight.float()
            lora_a, lora_b = (self.weights[stored.replace(".base_layer.", f".lora_{x}.default.")] for x in "AB")
            product, products = (SCALING * b @ a for b, a in ((lora_b, lora_a), (lora_b.abs(), lora_a.abs())))
            rounding = BF16 * (before.abs() + 2 * products + product.abs() + theirs.abs() + ours.abs())
            worst = ((ours - theirs).abs() / rounding).max().item()
            report.within(name(f"merge bf16/{key}, share of what rounding explains"), worst, 1.0)
        unchanged = half.keys() - set(self.expected["merged_changed_keys"])
        rounded = {key: self.weights[stored_name(self.weights, key)].bfloat16() for key in unchanged}
        unlike = [key for key, weight in rounded.items() if not torch.equal(half[key], weight)]
        report.check(name("merge bf16/other tensors"), not unlike, f"{unlike[:1]} is not the weight rounded to bf16")


def stored_name(weights: dict[str, torch.Tensor], published: str) -> str:
    """The name under which a checkpoint with LoRA inside stores the weight called ``published``."""

    def plain(name: str) -> str:
        return name.replace(".base_model.model.", ".").replace(".base_layer.", ".")

    return next(name for name in weights if plain(name) == published)


def train_lora_alone(model: InternVLChatModel) -> list[torch.nn.Parameter]:
    """Free the LoRA weights, freeze all others; returns the former."""
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in key)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
