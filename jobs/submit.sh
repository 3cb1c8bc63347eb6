#!/bin/bash
# Submit one experiment of the DP-LoRA study: fine-tuning, sampling and score, each after the one before has succeeded.
#
#   jobs/submit.sh [--dry-run] EXPERIMENT [key.path=value ...]
#
# EXPERIMENT is a name below jobs/backup/fid (celebahq_eps1, ft_celebahq_eps10_r16) or a table's below jobs/fid
# (table9/celeba32-eps1), or the path of any job. Settings go to fine-tuning. --dry-run prints the sbatch commands.
# PARTITION, and whatever the jobs read (PRETRAINED, LOGS, OUTPUT, SAMPLES), come from the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

dry=""
if [ "${1:-}" = --dry-run ]; then
    dry=1
    shift
fi
[ $# -ge 1 ] || die "name an experiment, such as celebahq_eps1 or table9/celeba32-eps1"
experiment=$1
shift

last=""
for job in "jobs/backup/fid/$experiment.job" "jobs/fid/$experiment-fid.job" "$experiment"; do
    if [ -f "$job" ]; then
        last=$(dirname "$job")/$(basename "$(readlink -f "$job")")
        break
    fi
done
[ -n "$last" ] || die "there is no experiment $experiment; ls jobs/backup/fid jobs/fid/* shows them"
[ -n "$dry" ] || command -v sbatch > /dev/null || die "there is no sbatch here; type: bash $last"
[ -z "${CKPT:-}" ] || die "CKPT would be sampled in place of what is fine-tuned; unset it (PRETRAINED names the start)"

number=0

# submit JOB ARGUMENT...: submit the jobs that JOB waits for, then JOB; sets id.
submit() {
    local job=$1 before after="" command line
    shift
    for before in $(sed -n 's/^# After: //p' "$job"); do
        submit "$before" "$@"
        after="$after:$id"
    done
    command=(sbatch --parsable ${PARTITION:+"--partition=$PARTITION"} ${after:+"--dependency=afterok$after"} "$job")
    case $job in
        */finetuning/*) command+=("$@") ;;
    esac
    if [ -n "$dry" ]; then
        number=$((number + 1))
        id="JOB$number"
        printf -v line '%q ' "${command[@]}"
        echo "$id=\$(${line% })"
    else
        id=$("${command[@]}")
        id=${id%%;*} # a cluster's name may follow the number
        echo "$id  $job"
    fi
}

submit "$last" "$@"
