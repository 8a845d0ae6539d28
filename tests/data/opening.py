"""A folder with rows.jsonl as a data set of training, for tests of the data readers."""

from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.tokenize import RenderSettings
from internvl.model.internvl_chat.conversation import get_conv_template


def open_rows(root, tokenizer, **settings) -> ConversationDataset:
    settings = {"max_seq_length": 700, "template": get_conv_template("internlm2-chat"), **settings}
    spec = DatasetSpec("rows", root, (root / "rows.jsonl",))
    return ConversationDataset([spec], tokenizer, RenderSettings(image_size=56, num_image_token=4, **settings))
