"""The training set: mixing, tiles, and rows that cannot be read."""

import json
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

from internvl.data.annotation import Row
from internvl.data.batch import BadSample, Collator, Sample
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec, read_meta
from internvl.data.sampling import SampleGroup
from internvl.data.tokenize import RenderSettings
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.internvl_chat.image_processing_internvl_chat import split_into_tiles as split
from tests.conftest import num_tiles, pixels

SETTINGS = RenderSettings(
    template=get_conv_template("internlm2-chat"), image_size=56, num_image_token=4, max_seq_length=512
)


def dataset(folder, tokenizer, entry=None, **options) -> ConversationDataset:
    meta = folder / "other_meta.json"
    own = {"root": str(folder), "annotation": str(folder / "train.jsonl"), **(entry or {})}
    meta.write_text(json.dumps({"rows": own}))
    return ConversationDataset(read_meta(meta), tokenizer, SETTINGS, **options)


def test_pixel_values_and_image_tokens_of_every_row_agree(rows_folder, tiny_model):
    model, tokenizer = tiny_model
    data = dataset(rows_folder, tokenizer)
    for sample in (data[index] for index in range(len(data))):
        tokens = (sample.input_ids == model.img_context_token_id).sum().item()
        tiles = num_tiles(sample)
        assert tokens == 4 * tiles


def test_lengths_of_the_check_are_those_of_the_samples(rows_folder, tiny_model):
    data = dataset(rows_folder, tiny_model.tokenizer)
    lengths = check_dataset(data).lengths(data.index)
    assert lengths.tolist() == [len(data[index].input_ids) for index in range(len(data))]


def test_images_of_one_row_share_the_tile_limit(rows_folder, tiny_model):
    data = dataset(rows_folder, tiny_model.tokenizer)
    rows = [Row((), ("a.png",) * count, (None,) * count, "f:1") for count in (0, 1, 2, 4, 9)]
    assert [data.tile_limit(data.specs[0], row) for row in rows] == [6, 6, 3, 1, 1]


@pytest.mark.parametrize(("repeat_time", "items"), [(1, 24), (2, 48), (0.5, 12), (2.25, 54)])
def test_repeat_time_repeats_and_draws(rows_folder, tiny_model, repeat_time, items):
    data = dataset(rows_folder, tiny_model.tokenizer, {"repeat_time": repeat_time})
    again = dataset(rows_folder, tiny_model.tokenizer, {"repeat_time": repeat_time})
    assert len(data) == items
    assert (data.index == again.index).all()
    other = dataset(rows_folder, tiny_model.tokenizer, {"repeat_time": repeat_time}, seed=1)
    assert (repeat_time % 1 == 0) == (data.index == other.index).all()


def test_an_unreadable_image_is_an_error_or_skipped_but_never_replaced(rows_folder, tiny_model, tmp_path):
    import shutil

    shutil.copytree(rows_folder, tmp_path / "copy")
    victim = tmp_path / "copy" / "images" / "image_000004.png"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train\.jsonl:5: .*image_000004\.png: cannot be read as an image"):
        dataset(tmp_path / "copy", tiny_model.tokenizer)[4]
    data = dataset(tmp_path / "copy", tiny_model.tokenizer, on_bad_sample="skip")
    (bad,) = data[4]
    assert isinstance(bad, BadSample) and bad.where.endswith("train.jsonl:5")
    batch = Collator(pad_token_id=2, image_size=56)([data[3], [bad], data[5]])
    assert len(batch["input_ids"]) == 2 and batch.skipped == [bad]


def test_the_check_names_and_counts_missing_images(rows_folder, tiny_model, tmp_path):
    import shutil

    shutil.copytree(rows_folder, tmp_path / "copy")
    (tmp_path / "copy" / "images" / "image_000001.png").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl:2: .*no such image(.|\n)*of 24 rows cannot be trained on"):
        check_dataset(dataset(tmp_path / "copy", tiny_model.tokenizer)).raise_errors("")


def test_collating_masks_by_length_and_flags_a_dummy_tile():
    text = Sample(torch.tensor([1, 0, 2]), torch.tensor([-100, 0, 2]), tree=(3, ()))
    longer = Sample(torch.arange(5), torch.arange(5), tree=(5, ()))
    batch = Collator(pad_token_id=2, image_size=56)([text, longer])
    # Token 0 and the pad id inside a text are not padding.
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert "attention_mask" not in batch.model_inputs()  # attention is causal, and the padding is on the right
    assert batch["labels"][0].tolist() == [-100, 0, 2, -100, -100]
    assert batch["pixel_values"].shape == (1, 3, 56, 56) and batch["image_flags"].tolist() == [0]


def test_a_batch_of_bad_rows_has_nothing_to_learn():
    batch = Collator(pad_token_id=2, image_size=56)([[BadSample("f:1", "gone")]])
    assert (batch["labels"] == -100).all() and len(batch.skipped) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"annotation": "nowhere.jsonl"}, r"rows\.annotation: nowhere\.jsonl does not exist"),
        ({"root": "nowhere"}, r"rows\.root: nowhere is not a folder"),
        ({"repeat_time": 0}, r"rows\.repeat_time: is 0"),
        ({"repeat": 2}, r"rows\.repeat: is not a key"),
        ({"length": "many"}, r"rows\.length: is 'many'"),
    ],
)
def test_mistakes_in_the_meta_file_are_named(rows_folder, tiny_model, entry, message):
    with pytest.raises(UserError, match=message):
        dataset(rows_folder, tiny_model.tokenizer, entry)


def large_photo(folder, name: str, orientation: int = 1):
    """A smooth JPEG of 1,600 × 900 px as stored, with an EXIF orientation."""
    image = Image.radial_gradient("L").resize((1600, 900)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(folder / name, quality=95, exif=exif)
    turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "A circle."}]
    return json.dumps({"image": name, "conversations": turns}) + "\n"


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decoding_keeps_grid_and_nearly_the_pixels(tmp_path, tiny_model, orientation, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(large_photo(tmp_path, "a.jpg", orientation))
    sizes = []

    def split_and_note(image, **how):
        sizes.append(image.size)
        return split(image, **how)

    monkeypatch.setattr("internvl.data.images.split_into_tiles", split_and_note)
    whole, draft = (
        ConversationDataset(
            [DatasetSpec("rows", tmp_path, (tmp_path / "rows.jsonl",))],
            tiny_model.tokenizer,
            replace(SETTINGS, draft_decoding=drafts),
        )[0]
        for drafts in (False, True)
    )
    assert len(whole.images[0]) > 1 and torch.equal(whole.input_ids, draft.input_ids)
    difference = (pixels(whole).float() - pixels(draft).float()).abs()
    assert difference.mean() < 1 and difference.max() < 16
    assert sizes[1][0] * 4 <= sizes[0][0], "an eighth or a quarter is enough for tiles of 56 px"


def test_an_augmented_image_depends_on_seed_and_epoch_alone(rows_folder, tiny_model):
    def tiles(epoch: int, seed: int = 0) -> torch.Tensor:
        random.random()
        data = dataset(rows_folder, tiny_model.tokenizer, {"data_augment": True}, seed=seed)
        return pixels(data[SampleGroup((0,), epoch)])

    assert torch.equal(tiles(0), tiles(0))
    assert not torch.equal(tiles(0), tiles(1)) or not torch.equal(tiles(0), tiles(2))
    assert not torch.equal(tiles(0), tiles(0, seed=1)) or not torch.equal(tiles(0), tiles(0, seed=2))
