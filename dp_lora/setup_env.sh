#!/bin/bash
# Make the environment of this repository, from any folder: conda's `ldm` (environment.yaml) where there is conda,
# otherwise .venv (make venv). Typed again, it brings the environment up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v module > /dev/null && ! command -v conda > /dev/null; then
    set +u
    # shellcheck disable=SC2086  # several modules, a word each
    module load ${MODULES-2024 Anaconda3/2024.06-1}
    set -u
fi

# nothing is activated here: a script cannot activate an environment in the shell that started it
if command -v conda > /dev/null; then
    if conda env list | grep -q '^ldm '; then
        conda env update --name ldm --file environment.yaml
    else
        conda env create --file environment.yaml
    fi
    echo "done; type: conda activate ldm"
else
    echo "no conda here, so the environment is made with make venv"
    make venv
    echo "done; type: source .venv/bin/activate"
fi
