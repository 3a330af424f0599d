#!/usr/bin/env bash
# The CIFAR-10 recipes on one GPU, in parts of at most nine minutes: a teacher, a map distilled from it by LMD, a map
# from the data alone by LSD (or MeanFlow), and their figures, into results/cifar10.
#
#   bash benchmarks/gpu_cifar10.sh                      the next part that is due; run it until nothing is
#   bash benchmarks/gpu_cifar10.sh PART [OPTION ...]    teacher, lmd, lsd, meanflow, measure (of the next map that is
#                                                       trained), or measure-lmd and the like
#   bash benchmarks/gpu_cifar10.sh status               what there is and what is due
#   bash benchmarks/gpu_cifar10.sh take FOLDER          put what another machine handed back into results/cifar10
#
# Options are those of gpu_cifar10.py (--lengths, --second) and of the recipes (--unet.width 48), the same each time.
# From the environment:
#   DEVICE=cuda     cpu to try it without a GPU, with tiny options
#   MINUTES=8       that a part may take in all, at most 8
#   OUT=            where results go instead, if a machine hands back a folder: what was there before is read from
#                   results/cifar10, and only what is new is written
#   SAMPLES=50000   images in a row of figures; fewer are taken, and said, where they do not fit in the time
#   FLOWMAPS_DATA   folder with cifar10/, else data/ and ../shared/data/ are searched
#   PYTHON          else .venv/bin/python where there is one, else python3
#
# Where runs/gpu-cifar10 is still there training goes on exactly; elsewhere from the packed weights in weights/.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
minutes=${MINUTES:-8}
if ! [[ $minutes =~ ^[1-8]$ ]]; then
  echo "gpu_cifar10: MINUTES must be a whole number from 1 to 8, got $minutes." >&2
  exit 2
fi
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

"$python" benchmarks/gpu_needs.py
# the program ends by itself; this is for a step that hangs: an interruption, on which it still saves
exec timeout --foreground --signal=INT --kill-after=10 $((minutes * 60 + 25)) \
  "$python" benchmarks/gpu_cifar10.py "$@" --device "${DEVICE:-cuda}" --minutes "$minutes" \
  --samples "${SAMPLES:-50000}" ${OUT:+--out "$OUT"}
