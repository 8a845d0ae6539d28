"""The closed model folder on the oldest and the newest transformers it is made for; ``run.sh`` has the others."""

import os
import shutil

import pytest

from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_conversion import convert_to_hf
from internvl.model.internvl_chat import compat
from tests.compat.versions import NEWEST, OLDEST, VERSIONS, differences, make_parser, use


@pytest.fixture(scope="module", params=["InternVL2-Tiny", "InternVL3_5-Tiny"])
def folder(request, repository, tmp_path_factory):
    """A shipped base as a user has it: files, not links into the repository."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(repository / "pretrained" / request.param, folder)
    return folder


@pytest.fixture(scope="module")
def hf_folder(folder):
    convert_to_hf(Checkpoint(folder), folder.with_name("hf"))
    return folder.with_name("hf")


@pytest.fixture(scope="module")
def expected(folder, hf_folder):
    """What the pinned transformers makes of the folder."""
    outcome = use(compat.transformers.__version__, folder, hf_folder)
    assert outcome.result is not None, outcome.failure
    return outcome.result


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_everything_automodel_offers_is_equal_on_this_version(folder, hf_folder, expected, version):
    if os.environ.get("INTERNVL_SKIP_INSTALL"):
        pytest.skip("INTERNVL_SKIP_INSTALL is set, and this installs another transformers into a folder of its own")
    outcome = use(version, folder, hf_folder)
    assert outcome.result is not None, outcome.failure
    assert outcome.result["transformers"] == version
    assert differences(outcome.result, expected) == []


@pytest.mark.parametrize("words", [[], ["4.57.6", "5.24.0"]])
def test_the_script_takes_versions_or_all_of_them(words):
    args = make_parser().parse_args(["--folder", "a", "--hf", "b", *words])
    assert list(args.versions) == (words or list(VERSIONS))


def test_an_unknown_version_is_named_in_one_line(caplog):
    for version, words in (("4.56.2", "4.56.2 is installed"), ("5.25.0", "4.57 to 5.24, and 5.25.0 is installed")):
        caplog.clear()
        compat.warn_if_untested(version)
        assert [record.message for record in caplog.records if words in record.message]
    caplog.clear()
    for version in (OLDEST, NEWEST, "5.12.1"):
        compat.warn_if_untested(version)
    assert not caplog.records
