"""The settings of a finetune: a launcher's torchrun call and the environment, overruled by what its user typed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from internvl.errors import UserError
from internvl.launch.batch import Batch, divide_batch
from internvl.launch.flags import Paths, is_on, make_parser, names_of, read_flags

# The flags that settings come from.
INPUT_PATHS = ("model_name_or_path", "meta_path", "deepspeed", "resume_from_checkpoint")
WITH_VALUE = (
    "model_name_or_path", "meta_path", "output_dir", "deepspeed", "per_device_train_batch_size",
    "gradient_accumulation_steps",
)  # fmt: skip
MAYBE_BARE = ("resume_from_checkpoint", "use_cpu")
PORT_OF_SEVERAL_NODES = 34229  # the nodes have to agree on it, so it cannot be just any free one


@dataclass(frozen=True)
class Nodes:
    """The machines of a run: which one this is, and where the first one listens (a ``port`` of None: any free one)."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a finetune is asked for; paths are right from the repository.

    ``recipe`` are the launcher's own flags and values, ``flags`` all the user's, as the finetune script gets them, and
    ``given`` the names of the latter. A ``deepspeed`` of None leaves the choice to the device. ``debug``: one process
    that reads its own data and has the terminal, so that breakpoints work.
    """

    script: str
    model: str
    meta_path: str
    output_dir: str
    batch: Batch
    nodes: Nodes
    precision: str
    deepspeed: str | None
    use_cpu: bool
    dry_run: bool
    debug: bool
    recipe: list[str]
    flags: list[str]
    given: set[str]

    @property
    def trains_lora(self) -> bool:
        """Whether all that trains of the language model is LoRA."""
        found, _ = read_flags(make_parser(("use_llm_lora",)), [*self.recipe, *self.flags])
        return found.get("use_llm_lora", "0") != "0"


def read_settings(call: Sequence[str], typed: Sequence[str], environment: Mapping[str, str], paths: Paths) -> Settings:
    """Return the settings of a finetune. A flag that says the same as a setting changes the setting.

    Args:
        call: the launcher's call, ``torchrun --nproc_per_node=N SCRIPT FLAG VALUE...``.
        typed: what the user typed behind the launcher's name.
        environment: the variables of the process.
        paths: where the user's paths lead.

    Raises:
        UserError: a setting is not what it has to be, or settings do not fit together.
    """
    # An empty setting is one that is not set, but for DEEPSPEED: empty is none.
    environment = {name: value for name, value in environment.items() if value or name == "DEEPSPEED"}
    parser = make_parser(WITH_VALUE)
    for name in MAYBE_BARE:
        parser.add_argument(f"--{name}", nargs="?", const="True")
    values, (_, processes, script, *recipe) = read_flags(parser, call)
    given, passed_on = read_flags(parser, typed)
    for name in INPUT_PATHS:
        if given.get(name) not in (None, "", "none"):
            given[name] = paths.input(given[name])
    if "output_dir" in given:
        given["output_dir"] = paths.output(given["output_dir"])
    values |= given
    deepspeed = values.get("deepspeed", environment.get("DEEPSPEED"))
    if deepspeed in ("", "none"):
        deepspeed = ""
        given.pop("deepspeed", None)  # a setting only: the flag itself takes nothing but a file
    elif deepspeed and "deepspeed" not in values:
        deepspeed = paths.input(deepspeed)
    nodes = environment.get("NNODES", "1")
    batch = divide_batch(
        environment.get("BATCH_SIZE", ""),
        values["per_device_train_batch_size"],
        processes.partition("=")[2],
        nodes,
        values["gradient_accumulation_steps"],
    )
    names = names_of(typed)
    if batch.fits_memory:  # a word of the launcher's, not of the script's
        given.pop("per_device_train_batch_size", None)
        names = names - {"per_device_train_batch_size"}
    return Settings(
        script,
        values["model_name_or_path"],
        values["meta_path"],
        values["output_dir"],
        batch,
        read_nodes(batch.nodes, environment),
        environment.get("PRECISION", "auto"),
        deepspeed,
        is_on(values.get("use_cpu")),
        is_on(environment.get("DRY_RUN")),
        _check_debug(is_on(environment.get("DEBUG")), batch),
        recipe,
        [*(word for name, value in given.items() for word in (f"--{name}", value)), *passed_on],
        names,
    )


def _check_debug(debug: bool, batch: Batch) -> bool:
    """Return ``debug``.

    Raises:
        UserError: it is wanted of several processes.
    """
    if debug and batch.gpus * batch.nodes > 1:
        raise UserError(f"DEBUG: is for one process, and GPUS x NNODES are {batch.gpus * batch.nodes}. Set GPUS=1.")
    return debug


def read_nodes(count: int, environment: Mapping[str, str]) -> Nodes:
    """Return what several nodes have to agree on.

    Raises:
        UserError: NODE_RANK, MASTER_ADDR or MASTER_PORT does not fit.
    """
    rank, address = environment.get("NODE_RANK", "0"), environment.get("MASTER_ADDR")
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", rank) or int(rank) >= count:
        raise UserError(
            f"NODE_RANK: expected a number from 0 to {count - 1} (NNODES is {count}), found '{rank}'. Give each node "
            "its own number, the first one 0."
        )
    if count > 1 and not address:
        raise UserError(
            f"MASTER_ADDR: not set, and NNODES is {count}. Set it on every node to the address of the node with "
            "NODE_RANK=0."
        )
    port = environment.get("MASTER_PORT") or (str(PORT_OF_SEVERAL_NODES) if count > 1 else "")
    if port and not (re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) < 65536):
        raise UserError(f"MASTER_PORT: expected a port from 1 to 65535, found '{port}'. Unset it to get a free one.")
    return Nodes(count, int(rank), address or Nodes.address, int(port) if port else None)
