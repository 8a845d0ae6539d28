"""A merged folder in a process that knows transformers alone: everything a user does with ``AutoModel``."""

import transformers

from internvl.model.checkpoint import Checkpoint
from internvl.model.merging import merge_checkpoint
from tests.compat.versions import use


def test_a_merged_folder_does_all_that_automodel_offers_without_the_repository(trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    outcome = use(transformers.__version__, tmp_path / "merged", None)
    assert outcome.result is not None, outcome.failure
    assert outcome.result["chat"]["batch"] and outcome.result["generate"]["beams"]
