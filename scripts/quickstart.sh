#!/usr/bin/env bash
# The whole job on real digits, with no download: private fine-tuning of the public model, samples, a report.
# With --full the public autoencoder and latent diffusion model are trained first. Commands are shown as they run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "" | --full) ;;
  *) echo "usage: scripts/quickstart.sh [--full]" >&2; exit 2 ;;
esac

PYTHON="${VENV:-.venv}/bin/python"
[ -x "$PYTHON" ] || PYTHON=python
runs="logs/quickstart-$(date +%Y-%m-%dT%H-%M-%S)"
public=checkpoints/glyphs32-ldm.safetensors
device="--accelerator cpu"
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then device="--gpus 0,"; fi

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
do_it() { say "python ${*}"; "$PYTHON" "$@"; }
latest() { ls -d "$1"/*/ | tail -n 1; }
started=$(date +%s)

if [ "${1:-}" = --full ]; then
  # shellcheck disable=SC2086
  do_it main.py --base configs/quickstart/autoencoder.yaml -t $device -l "$runs/autoencoder" --max_steps 500 \
    "model.params.scheduler_config.params.cycle_lengths=[500]"
  autoencoder="$(latest "$runs/autoencoder")checkpoints/last.ckpt"
  # shellcheck disable=SC2086
  do_it main.py --base configs/quickstart/latent-diffusion.yaml -t $device -l "$runs/latent-diffusion" \
    --max_steps 2000 "model.params.scheduler_config.params.cycle_lengths=[2000]" \
    "model.params.first_stage_config.params.ckpt_path=$autoencoder"
  public="$runs/public.safetensors"
  do_it scripts/export_checkpoint.py --ckpt "$(latest "$runs/latent-diffusion")checkpoints/last.ckpt" --output "$public"
fi

# shellcheck disable=SC2086
do_it main.py --base configs/quickstart/finetune-dp-eps10.yaml -t $device -l "$runs/private" "model.params.ckpt_path=$public"
# shellcheck disable=SC2086
do_it main.py --base configs/quickstart/finetune-dp-eps10.yaml configs/quickstart/no-privacy.yaml -t $device \
  -l "$runs/no-privacy" "model.params.ckpt_path=$public"
do_it sampling/conditional_sampling.py --yaml configs/quickstart/finetune-dp-eps10.yaml \
  --ckpt "$(latest "$runs/private")checkpoints/last.ckpt" --output "$runs/digits.png" \
  --num_samples 100 --classes 0 1 2 3 4 5 6 7 8 9 --steps 20 --guidance 2
do_it scripts/quickstart_report.py --yaml configs/quickstart/finetune-dp-eps10.yaml --public "$public" \
  --private "$(latest "$runs/private")" --plain "$(latest "$runs/no-privacy")" --output "$runs/report"

echo
echo "privacy card: $(latest "$runs/private")privacy.json"
echo "images (two lines each: real, public model, private model): $runs/report/samples.png"
echo "curves: $runs/report/curves.png    numbers: $runs/report/results.json"
echo "finished in $(($(date +%s) - started)) s"
echo "next: dp-ldm release $(latest "$runs/private") NEW_FOLDER, or with images of your own: dp-ldm new FOLDER"
