#!/usr/bin/env bash
# Uses a checkpoint folder on many versions of transformers, and prints a table of what is equal.
#
#   bash tests/compat/run.sh                        # the shipped base, on ten versions from 4.57.6 to 5.24.0
#   bash tests/compat/run.sh 4.57.6 5.24.0
#   FOLDER=log_merged/mine bash tests/compat/run.sh 5.24.0
#
# Each version is installed once into tests/compat/.versions (about 250 MB), beside the environment's one torch.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=../../shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"

input_path FOLDER pretrained/InternVL2-Tiny
cd -- "$REPO_ROOT"
ensure_python
HF=$(mktemp -d)
trap 'rm -rf -- "$HF"' EXIT
"$PYTHON" tools/convert_to_hf.py "$FOLDER" "$HF/hf" >/dev/null
"$PYTHON" -m tests.compat.versions --folder "$FOLDER" --hf "$HF/hf" "$@"
