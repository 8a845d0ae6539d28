#!/usr/bin/env bash
# Downloads a published checkpoint and makes it work on transformers 5.
#
#   bash tools/download_pretrained.sh                          # OpenGVLab/InternVL2-2B, 4.4 GB
#   bash tools/download_pretrained.sh OpenGVLab/InternVL3_5-1B # another member, into pretrained/InternVL3_5-1B
#   bash tools/download_pretrained.sh OpenGVLab/InternVL2-2B pretrained/mine
#
# Needs the network and 5 GB of disk. HF_ENDPOINT names a mirror, HF_TOKEN an account.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=../shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"

REPOSITORY=${1:-OpenGVLab/InternVL2-2B}
FOLDER=${2:-pretrained/${REPOSITORY##*/}}
PARTIAL=$FOLDER.partial # takes the folder's name when it is complete
cd -- "$REPO_ROOT"
ensure_python
if [[ -e $FOLDER ]]; then
    say "$FOLDER is there already: checking it."
    exec "$PYTHON" tools/prepare_pretrained.py "$FOLDER" --check
fi
say "Downloading $REPOSITORY into $FOLDER."
"$PYTHON" - "$REPOSITORY" "$PARTIAL" <<'PYTHON' || die "$REPOSITORY: could not be downloaded (the reason is above)." \
    "Check the network, or set HF_ENDPOINT to a mirror, and run this again: it goes on where it stopped."
import sys

from huggingface_hub import snapshot_download

try:
    snapshot_download(sys.argv[1], local_dir=sys.argv[2])
except Exception as err:  # many libraries below raise their own kinds; the user needs the reason in one line
    sys.exit(f"{type(err).__name__}: {err}")
PYTHON
"$PYTHON" tools/prepare_pretrained.py "$PARTIAL"
"$PYTHON" tools/prepare_pretrained.py "$PARTIAL" --check
mv -- "$PARTIAL" "$FOLDER"
say "$FOLDER is complete."
