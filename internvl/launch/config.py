"""CONFIG: a file of flags for a launcher, the training_args.json of an earlier run among them."""

import json
from collections.abc import Sequence
from pathlib import Path

from internvl.errors import UserError, shorten
from internvl.launch.flags import Paths, names_of

# Of an earlier run's flags: where it wrote, where it went on, and what only suited its machine.
OF_ONE_RUN = frozenset(
    {
        "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "use_cpu", "dataloader_num_workers",
        "dataloader_prefetch_factor",
    }
)  # fmt: skip
NOTHING = (None, "", "null", "~")  # a flag that is written down and not set
FORM = "Write flags as in YAML: 'learning_rate: 1e-5', one a line, or give the training_args.json of a run"


def can_read(path: str) -> bool:
    """Return whether the file can be read before anything is installed: YAML needs a package."""
    if Path(path).suffix.lower() == ".json":
        return True
    try:
        import yaml  # noqa: F401 - whether it is there
    except ImportError:
        return False
    return True


def with_config(path: str | None, typed: Sequence[str], paths: Paths) -> list[str]:
    """Return what the user typed behind the flags of CONFIG; a flag that he typed takes the place of the file's.

    Args:
        path: the file, as CONFIG names it; None or empty for none.
        typed: the words behind the launcher's name.
        paths: where the user's paths lead.

    Raises:
        UserError: the file cannot be read, or holds something else than flags.
    """
    if not path:
        return list(typed)
    file = paths.input(path)
    flags = _read_flags(file, f"CONFIG: {file}")
    given = names_of(typed)
    return [word for name, words in flags.items() if name not in given for word in (f"--{name}", *words)] + list(typed)


def _read_flags(file: str, where: str) -> dict[str, list[str]]:
    """Return the flags of a file: name → values."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{where}: cannot be read ({err}). Name a file of flags.") from err
    content = _parse(text, file, where)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: holds {shorten(content)}. {FORM}.")
    command = content.get("command")
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        return _flags_of(command[1:])
    return {
        str(name).removeprefix("--").replace("-", "_"): _words(value, f"{where}:{name}")
        for name, value in content.items()
        if value not in NOTHING
    }


def _parse(text: str, file: str, where: str) -> object:
    if Path(file).suffix.lower() == ".json":
        try:
            return json.loads(text)
        except ValueError as err:
            raise UserError(f"{where}: is broken JSON ({err}). Correct it.") from err
    import yaml

    try:
        # Every value as it is written: 1e-5 is no number of YAML, and "no" would be False.
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as err:
        raise UserError(f"{where}: is broken YAML ({' '.join(str(err).split())}). Correct it.") from err


def _words(value: object, where: str) -> list[str]:
    """Return a value as the words behind a flag."""
    if isinstance(value, list) and value and not any(isinstance(part, list | dict) for part in value):
        return [word for part in value for word in _words(part, where)]
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: is {shorten(value)}. {FORM}.")
    return [str(value)]


def _flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of a run's command but for those of :data:`OF_ONE_RUN`."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            flags[name] = [value] if value else []
        elif name:
            flags[name].append(word)
    return {name: values for name, values in flags.items() if name not in OF_ONE_RUN}
