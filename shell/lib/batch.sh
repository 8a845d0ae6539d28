# shellcheck shell=bash
# The batch arithmetic. Needs common.sh.

# check_positive NAME VALUE: VALUE is a whole number from 1 to 999999999, or the script ends.
check_positive() {
    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1: expected a whole number of 1 or more, found '$2'. Set for example $1=${3:-1}."
}

# gradient_accumulation BATCH PER_DEVICE GPUS NNODES: prints BATCH / (PER_DEVICE x GPUS x NNODES), which must be whole:
# rounding it would train with another batch size than the one asked for, and say nothing.
# Example: gradient_accumulation 16 4 2 1 prints 2.
gradient_accumulation() {
    local batch=$1 per_device=$2 gpus=$3 nnodes=$4 rows lower advice
    check_positive BATCH_SIZE "$batch" 16
    check_positive PER_DEVICE_BATCH_SIZE "$per_device" 4
    check_positive GPUS "$gpus"
    check_positive NNODES "$nnodes"
    rows=$((per_device * gpus * nnodes))
    if ((batch % rows == 0)); then
        echo $((batch / rows))
        return
    fi
    lower=$((batch / rows * rows))
    advice="BATCH_SIZE=$((lower + rows))"
    ((lower == 0)) || advice="BATCH_SIZE=$lower or $advice"
    advice+=$(per_device_advice "$batch" "$per_device" $((gpus * nnodes)))
    die "BATCH_SIZE=$batch cannot be split: PER_DEVICE_BATCH_SIZE ($per_device) x GPUS ($gpus) x NNODES ($nnodes) =" \
        "$rows rows per forward pass, and $batch / $rows is not whole. Use $advice."
}

# per_device_advice BATCH PER_DEVICE PROCESSES: prints ", or PER_DEVICE_BATCH_SIZE=N" with the N nearest to PER_DEVICE that
# splits BATCH over PROCESSES, the smaller one of two (it needs less memory); nothing when BATCH itself does not split.
per_device_advice() {
    local batch=$1 per_device=$2 share distance candidate
    ((batch % $3 == 0)) || return 0
    share=$((batch / $3))
    ((per_device <= share)) || per_device=$share
    for ((distance = 0; distance <= per_device; distance++)); do
        for candidate in $((per_device - distance)) $((per_device + distance)); do
            if ((candidate > 0 && share % candidate == 0)); then
                printf ', or PER_DEVICE_BATCH_SIZE=%s' "$candidate"
                return
            fi
        done
    done
}
