# Sourced by every job, from the root of the repository: where things are, and how a verb is started.
#
#   LOGS     folder of the runs             (logs)
#   OUTPUT   folder of samples and scores   (output)
#   PYTHON   interpreter                    (.venv/bin/python, or that of the conda environment $CONDA_ENV, ldm)
#   MODULES  modules to load first          ("2024 Anaconda3/2024.06-1" where there is a module command)
#   DRY_RUN  set to 1, commands are printed instead of run
set -euo pipefail

LOGS=${LOGS:-logs}
OUTPUT=${OUTPUT:-output}
DRY_RUN=${DRY_RUN:-}

die() {
    echo "error: $*" >&2
    exit 2
}

# The interpreter: what PYTHON says, or the environment that dp_lora/setup_env.sh or `make venv` has made.
find_python() {
    if [ -n "${PYTHON:-}" ] || [ -n "$DRY_RUN" ]; then
        PYTHON=${PYTHON:-python}
        return
    fi
    if [ -x .venv/bin/python ]; then
        PYTHON=.venv/bin/python
        return
    fi
    PYTHON=python
    set +u # neither modules nor conda expect it
    if command -v module > /dev/null; then
        # shellcheck disable=SC2086  # several modules, a word each
        module load ${MODULES-2024 Anaconda3/2024.06-1}
    fi
    if command -v conda > /dev/null; then
        eval "$(conda shell.bash hook)"
        conda activate "${CONDA_ENV:-ldm}"
    fi
    set -u
}

# run FILE ARGUMENT...: a verb of the repository, as a step of the SLURM job where there is one.
run() {
    local command=("$PYTHON" "$@")
    if [ -n "${SLURM_JOB_ID:-}" ] && command -v srun > /dev/null; then
        command=(srun "${command[@]}")
    fi
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}

# array_part [ARGUMENT...]: in a task of a SLURM array, the flag that does its part of the job, and the arguments;
# nothing elsewhere. The task that finishes last merges the parts.
array_part() {
    if [ -n "${SLURM_ARRAY_TASK_COUNT:-}" ]; then
        echo "--shard $((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:-0} + 1))/$SLURM_ARRAY_TASK_COUNT $*"
    fi
}

# newest_run FOLDER NAME VARIABLE: last.ckpt of the newest run of configuration NAME below FOLDER. Where there is none, a
# dry run prints the path that it would have, and others stop with a message that names VARIABLE.
newest_run() {
    local found=""
    for found in "$1"/????-??-??T??-??-??_"$2"/checkpoints/last.ckpt; do :; done # sorted: the last is the newest
    if [ -f "$found" ]; then
        echo "$found"
    elif [ -n "$DRY_RUN" ]; then
        echo "$1/RUN_$2/checkpoints/last.ckpt"
    else
        die "no finished run of $2 in $1; run its job first, or set ${3:-CKPT}=/path/to/checkpoint"
    fi
}

# yaml_of CHECKPOINT DEFAULT: the configuration that the run of a checkpoint was trained with, settings typed for it
# included; DEFAULT where the checkpoint stands outside a run.
yaml_of() {
    local found=""
    for found in "$(dirname "$1")"/../configs/*-project.yaml; do :; done
    if [ -f "$found" ]; then
        echo "$found"
    else
        echo "$2"
    fi
}

# need FILE HOW: stop unless FILE is there.
need() {
    [ -n "$DRY_RUN" ] || [ -f "$1" ] || die "there is no $1; $2"
}

find_python
