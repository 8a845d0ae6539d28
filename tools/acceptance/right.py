"""Stage "right": does a GPU compute what the CPU computes, with which kernels, and is everything there."""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch
from acceptance.checks import REPOSITORY, TINY, Figures, Setting, Skipped, check, largest_difference, require
from acceptance.golden import BEAMS, IMAGES, QUESTION, WAYS, answers, losses, read_golden, top_logits
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from internvl.device import choose_kernels, detect_device
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.internvl_chat.sequence_layout import PrefixTree, SequenceLayout, attend_in_groups
from internvl.train.run_folder import RECORD

PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes", "liger-kernel")
HALF_ERROR = 2e-2  # of a loss in half precision, relative
FULL_ERROR = 1e-4  # of a loss in float32
SLOW_SHAPE = 3.0  # a shape met for the first time may take so many times the time of a known one
LAYOUTS = {1: ((1850, (36,) * 4 + ((300, (20, 20)),)),), 4: ((1850, (36,) * 5),) * 4, 100: ((80, ()),) * 100}
SMALL_LAYOUTS = {1: ((40, (6, 6, (9, (2, 3)))),), 4: ((40, (6,) * 3),) * 4, 20: ((9, ()),) * 20}


@check("right", 60)
def machine(setting: Setting, figures: Figures) -> None:
    """Versions, device, memory, and that a kernel runs at all."""
    figures["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            figures[package] = version(package)
        except PackageNotFoundError:
            figures[package] = None
    figures["device"], figures["precision"], figures["devices"] = detect_device()
    figures["cores"], figures["memory_gib"] = os.cpu_count(), round(psutil.virtual_memory().total / 2**30, 1)
    figures["shared_memory_gib"] = round(shutil.disk_usage("/dev/shm").free / 2**30, 1)
    if not setting.rehearsal:
        free, total = torch.cuda.mem_get_info()
        figures["name"] = torch.cuda.get_device_name()
        figures["capability"] = list(torch.cuda.get_device_capability())
        figures["architectures"] = torch.cuda.get_arch_list()
        figures["cudnn"] = torch.backends.cudnn.version()
        figures["free_gib"], figures["total_gib"] = round(free / 2**30, 1), round(total / 2**30, 1)
    ones = torch.ones(64, 64, device=setting.device)
    require(bool((ones @ ones == 64).all()), "a matrix product of ones is wrong")


@check("right", 120)
def attention_kernels(setting: Setting, figures: Figures) -> None:
    """Kernel and time of attention on twenty new lengths; it must not be slow on each new one."""
    prefix, width, dtype = setting.size(1850, 64), setting.size(128, 16), torch.float32
    if not setting.rehearsal:
        dtype = torch.bfloat16
    ways = {"chosen": choose_kernels}
    if not setting.rehearsal:
        # What PyTorch takes by itself is measured first: choosing holds for the whole process.
        ways = {"by_itself": lambda: torch.backends.cuda.enable_cudnn_sdp(True), **ways}
    for way, choose in ways.items():
        choose()
        first, again = [], []
        for number in range(20):
            layout = SequenceLayout(((prefix, (20 + number,) * 5),))
            attend = partial(_attend, layout, width, dtype, setting)
            first.append(attend())
            again.append(attend())
        figures[way] = {
            "milliseconds_first": 1000 * statistics.median(first[2:]),
            "milliseconds_again": 1000 * statistics.median(again[2:]),
            "kernels": _kernels(attend) if not setting.rehearsal else [],
        }
    chosen = figures["chosen"]
    require(
        chosen["milliseconds_first"] <= SLOW_SHAPE * chosen["milliseconds_again"] + 1,
        f"a new length takes {chosen['milliseconds_first']:.1f} ms, a known one {chosen['milliseconds_again']:.1f}",
    )


def _states(layout: SequenceLayout, width: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Return query, key and value of 16 and 8 heads that require gradients, as slices as the model has them."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, layout.num_tokens, width) for heads in (16, 8, 8)]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [part.requires_grad_() for part in made]


def _attend(layout: SequenceLayout, width: int, dtype: torch.dtype, setting: Setting) -> float:
    """Return the seconds of attention over a layout, forward and backward."""
    states = _states(layout, width, dtype, setting.device)
    setting.synchronize()
    started = time.perf_counter()
    attend_in_groups(*states, layout).sum().backward()
    setting.synchronize()
    return time.perf_counter() - started


def _kernels(run) -> list[str]:
    """Return the names of the attention kernels that ``run`` starts."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
    names = {event.key for event in profiled.key_averages()}
    return sorted(
        name for name in names if any(word in name.lower() for word in ("flash", "fmha", "cudnn", "efficient"))
    )


@check("right", 60)
def attention_in_groups(setting: Setting, figures: Figures) -> None:
    """Attention in groups equals a dense mask in float32, forward and backward, and its time by number of groups."""
    choose_kernels()
    layouts = SMALL_LAYOUTS if setting.rehearsal else LAYOUTS
    dtypes = [torch.float32] if setting.rehearsal else [torch.bfloat16, torch.float16]
    for count, groups in layouts.items():
        layout = SequenceLayout(groups)
        for dtype in dtypes:
            states = _states(layout, 64, dtype, setting.device)
            output = attend_in_groups(*states, layout)
            output.float().square().sum().backward()
            exact = [part.detach().float().requires_grad_() for part in states]
            expected = dense_attention(*exact, layout)
            expected.square().sum().backward()
            pairs = [(output, expected), *((a.grad, b.grad) for a, b in zip(states, exact, strict=True))]
            worst = max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in pairs)
            name = f"{count} groups, {str(dtype).removeprefix('torch.')}"
            figures[name] = {
                "error": worst,
                "milliseconds": 1000 * min(_attend(layout, 64, dtype, setting) for _ in range(3)),
            }
            require(worst < (1e-5 if dtype == torch.float32 else HALF_ERROR), f"{name}: differs by {worst:.1e}")


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SequenceLayout
) -> torch.Tensor:
    """Return attention as one masked call over the whole sequence, (1, N, H, D); arguments as of attend_in_groups."""
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    start = 0
    for group in layout.groups:
        start = _fill(mask, group, torch.zeros(layout.num_tokens, dtype=torch.bool), start)
    heads = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(heads, dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.device)).transpose(1, 2)


def _fill(mask: torch.Tensor, branch: int | PrefixTree, above: torch.Tensor, start: int) -> int:
    """Let the tokens of a branch see ``above``, bool (N,), and those before them in it; return the token behind it."""
    own, branches = (branch, ()) if isinstance(branch, int) else branch
    end = start + own
    mask[start:end] |= above
    mask[start:end, start:end] = torch.ones(own, own).tril().bool()
    above = above.clone()
    above[start:end] = True
    for below in branches:
        end = _fill(mask, below, above, end)
    return end


@check("right", 240)
def golden_training(setting: Setting, figures: Figures) -> None:
    """Ten steps of the tiny base: losses and gradient norms of the CPU, plain, shared, packed, recomputed."""
    _exact_float32()
    golden = read_golden()["training"]
    for way, flags in WAYS.items():
        trained = losses(
            setting.work / f"golden-{way}", *flags, "--overwrite_output_dir", "True", device=setting.device
        )
        figures[way] = {name: largest_difference(values, golden[way][name]) for name, values in trained.items()}
        require(figures[way]["loss"] < FULL_ERROR, f"{way}: losses differ by {figures[way]['loss']:.1e}")
    if setting.rehearsal:
        return
    for precision in ("bf16", "fp16"):
        flags = [*WAYS["shared"], f"--{precision}", "True", "--overwrite_output_dir", "True"]
        trained = losses(setting.work / f"golden-{precision}", *flags, device=setting.device)
        figures[precision] = largest_difference(trained["loss"], golden["shared"]["loss"])
        require(figures[precision] < HALF_ERROR, f"{precision}: losses differ by {figures[precision]:.1e}")


def _exact_float32() -> None:
    """Leave TF32 out, of matrix products and of convolutions, which have it by default."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@check("right", 120)
def golden_answers(setting: Setting, figures: Figures) -> None:
    """Eight answers of the tiny base, greedy and with three beams, and logits: those of the CPU."""
    _exact_float32()
    golden = read_golden()
    engine = Engine.load(TINY, precision="fp32", device=setting.device)
    for beams in BEAMS:
        pairs = zip(answers(engine, beams), golden["answers"][str(beams)], strict=True)
        figures[f"answers that differ, {beams} beams"] = sum(mine != theirs for mine, theirs in pairs)
    found = zip(top_logits(engine), golden["top_logits"], strict=True)
    figures["logits"] = max(largest_difference(mine, theirs) for mine, theirs in found)
    require(figures["logits"] < FULL_ERROR, f"logits differ by {figures['logits']:.1e}")
    differing = {name: number for name, number in figures.items() if name.startswith("answers") and number}
    require(not differing, f"in float32 no answer may differ, and {differing} do")


@check("right", 60)
def left_padding(setting: Setting, figures: Figures) -> None:
    """Prompts of different lengths give the same answers in one batch as alone."""
    _exact_float32()
    engine = Engine.load(TINY, precision="fp32", device=setting.device)
    files = sorted(IMAGES.glob("*.jpg"))[: setting.size(8, 4)]
    words = ["Look. " * (3 * number) + QUESTION for number in range(len(files))]
    asked = [Request([engine.read(file)], text) for file, text in zip(files, words, strict=True)]
    for beams in BEAMS:
        generation = {"max_new_tokens": 20, "num_beams": beams, "do_sample": False}
        together = engine.answer(asked, **generation)
        alone = [engine.answer([request], **generation)[0] for request in asked]
        figures[f"{beams} beams"] = sum(a != b for a, b in zip(together, alone, strict=True))
        require(not figures[f"{beams} beams"], f"{beams} beams: batched answers differ from single ones")


@check("right", 240)
def tests_marked_gpu(setting: Setting, figures: Figures) -> None:
    """The tests that are marked gpu; in a rehearsal they are run on the CPU."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    words += ["-k", "cpu"] if setting.rehearsal else ["-m", "gpu"]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    print(result.stdout[-6000:])
    figures["summary"] = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else result.stderr[-300:]
    if "No module named pytest" in result.stderr:
        raise Skipped("pytest is not installed")
    require(result.returncode == 0, figures["summary"])


@check("right", 120)
def resume(setting: Setting, figures: Figures) -> None:
    """A training that goes on from a checkpoint has the losses of one that was not interrupted."""
    saving = ["--save_strategy", "steps", "--save_steps", "3", "--overwrite_output_dir", "True"]
    whole = losses(setting.work / "whole", *saving, device=setting.device, steps=6)["loss"]
    folder = setting.work / "cut"
    if folder.is_dir():
        shutil.rmtree(folder)
    shutil.copytree(setting.work / "whole" / "checkpoint-3", folder / "checkpoint-3")
    shutil.copyfile(setting.work / "whole" / RECORD, folder / RECORD)
    again = losses(folder, "--save_strategy", "steps", "--save_steps", "3", device=setting.device, steps=6)["loss"]
    figures["difference"] = largest_difference(again[-3:], whole[-3:])
    require(figures["difference"] <= (0 if setting.rehearsal else 1e-5), f"losses differ: {again[-3:]}, {whole[-3:]}")
