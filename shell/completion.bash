# shellcheck shell=bash
# Completes flags and settings on the command line of bash: source shell/completion.bash
#
#   bash shell/internvl2.0/…/lora.sh --learn<TAB>                 flags of the script behind a launcher
#   bash evaluate.sh MODEL <TAB>                                  tasks, then flags of the evaluation
#   python tools/chat.py --<TAB>                                  flags of a command
#
# Flags are read from --help, once a shell for each command.

declare -gA _INTERNVL_FLAGS=()

# _internvl_flags COMMAND…: sets FLAGS to the flags that "COMMAND… --help" lists.
_internvl_flags() {
    local key="$*"
    if [[ -z ${_INTERNVL_FLAGS[$key]:-} ]]; then
        _INTERNVL_FLAGS[$key]=$("$@" --help 2>/dev/null | grep -oE '(^|[ ,[])--[a-z0-9][a-z0-9_-]*' | tr -d ' ,[' | sort -u | tr '\n' ' ')
    fi
    FLAGS=${_INTERNVL_FLAGS[$key]}
}

_internvl_text() { cat -- "$1"; }

_internvl_complete() {
    local current=${COMP_WORDS[COMP_CWORD]} script=${COMP_WORDS[1]:-} python root FLAGS=''
    COMPREPLY=()
    [[ $COMP_CWORD -ge 2 && -f $script ]] || return 0
    python=$(command -v python3 || command -v python)
    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    [[ -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python
    case $script in
        *evaluate.sh)
            if ((COMP_CWORD == 3)); then
                FLAGS='caption caption-coco caption-flickr30k caption-nocaps caption-habitat caption-custom caption-train
                    answers-habitat_nav answers-custom answers-train'
            elif [[ ${COMP_WORDS[3]:-} == answers* ]]; then
                _internvl_flags "$python" "$root/eval/answers/evaluate_answers.py"
            else
                _internvl_flags "$python" "$root/eval/caption/evaluate_caption.py"
            fi
            ;;
        */cider.sh | *_cider.sh | */dpo.sh) _internvl_flags "$python" "$root/internvl/train/internvl_chat_reward.py" ;;
        *shell/internvl*.sh) _internvl_flags _internvl_text "$root/internvl/commands/finetune_help.txt" ;;
        *tools/*.py) _internvl_flags "$python" "$script" ;;
        *) return 0 ;;
    esac
    if [[ $current == -* || $script == *evaluate.sh && $COMP_CWORD == 3 ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$FLAGS" -- "$current")
    fi
}

# What is not a flag is completed as ever: by files.
complete -o default -F _internvl_complete bash python python3
