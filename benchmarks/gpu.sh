#!/usr/bin/env bash
# One visit to a GPU: is it correct, how fast is it, how good are CIFAR-10 samples after two minutes. At most 9 minutes.
#
#   bash benchmarks/gpu_wheels.sh                           first, where there is a network: fills .gpu/
#   bash benchmarks/gpu.sh                                  on the machine with the GPU: torch 2.11 or newer, Python 3.12
#   DEVICE=cpu SCALE=tiny bash benchmarks/gpu.sh            the same code in three minutes without a GPU
#
# Each part runs under a clock of its own and writes its figures at once, so that one that fails or overruns costs only
# itself. A part first gets ready (imports, compiles) beside the others, then waits for its turn and has the machine alone.
#
#   OUT=results/gpu       where figures.jsonl, report.md, samples.png, log.txt and the run lmd/ go; emptied first
#   DEVICE=cuda  SCALE=full  COMPILER=inductor (eager in tiny)  DATA=.gpu/cifar10  PYTHON=python3
#   CLOCK_part=SECONDS    the clock of a part (CLOCK_teacher=60); FAIL=part,part puts an error into parts
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
SECONDS=0
export DEVICE=${DEVICE:-cuda} SCALE=${SCALE:-full} OUT=${OUT:-results/gpu} DATA=${DATA:-.gpu/cifar10}
[[ $SCALE == tiny ]] && COMPILER=${COMPILER:-eager}
export COMPILER=${COMPILER:-inductor} PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=4 FLOWMAPS_TEST_DEVICE=$DEVICE
WORK=$(mktemp -d) && export WORK
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$WORK"' EXIT
python=${PYTHON:-python3}
whole=540
[[ $SCALE == tiny ]] && whole=2160
mkdir -p "$OUT"
rm -rf "$OUT"/{figures.jsonl,report.md,samples.png,log.txt,lmd}
touch "$OUT/figures.jsonl" "$OUT/log.txt"

if compgen -G '.gpu/wheels/*.whl' >/dev/null && [[ $DEVICE == cuda ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" \
    .gpu/wheels/*.whl >>"$OUT/log.txt" 2>&1 || echo "gpu: the wheels could not be installed, see $OUT/log.txt"
fi
export PYTHONPATH="src:benchmarks:$WORK/site${PYTHONPATH:+:$PYTHONPATH}"

# start NAME COMMAND...: begin a part in the background; it waits for the file $WORK/NAME.go when it is ready
declare -A pid
start() {
  local name=$1 && shift
  [[ ,${FAIL:-}, == *,$name,* ]] && set -- bash -c 'echo "an error was asked for by FAIL" >&2; exit 1'
  PART=$name "$@" >"$WORK/$name.log" 2>&1 &
  pid[$name]=$!
}

# turn NAME CLOCK: give a part the machine, for so many seconds at most
turn() {
  local name=$1 clock=$2 begun=$SECONDS status=done code=0 own
  [[ $SCALE == tiny ]] && clock=$((4 * clock)) # of a machine that has other work: it ends when the parts end
  own=CLOCK_$name && clock=${!own:-$clock}
  ((clock > whole - SECONDS)) && clock=$((whole - SECONDS))
  touch "$WORK/$name.go"
  while kill -0 "${pid[$name]}" 2>/dev/null; do
    if ((SECONDS - begun >= clock)); then
      kill -INT "${pid[$name]}" 2>/dev/null && sleep 0.5
      kill -KILL "${pid[$name]}" 2>/dev/null
      status="stopped by its clock of ${clock} s"
      break
    fi
    sleep 0.2
  done
  wait "${pid[$name]}" 2>/dev/null || code=$?
  [[ $status == "done" && $code != 0 ]] && status="failed with code $code"
  printf '\n==== %s: %s\n' "$name" "$status" | cat - "$WORK/$name.log" >>"$OUT/log.txt"
  printf '{"kind": "part", "part": "%s", "status": "%s", "seconds": %d}\n' "$name" "$status" $((SECONDS - begun)) \
    >>"$OUT/figures.jsonl"
  echo "[$SECONDS s] $name: $status"
  [[ $status == "done" ]] || tail -n 3 "$WORK/$name.log"
}

speeds=("unet lmd-target" "dit-b lmd-target" "dit-b lsd")
start prepare "$python" benchmarks/gpu_images.py prepare
for name in teacher lmd; do start "$name" "$python" benchmarks/gpu_images.py "$name"; done
for k in 0 1 2; do # nice: what gets ready leaves the processors to the part whose turn it is
  # shellcheck disable=SC2086  # two words
  start "compiled$k" nice "$python" benchmarks/gpu_speed.py ${speeds[$k]}
done
selected="not compiled" # inductor takes a minute on a CPU
[[ $DEVICE == cuda ]] && selected=""
start tests "$python" -m pytest -q -p no:cacheprovider --tb=short -m gpu -k "$selected" tests/gpu

turn tests 80
for name in lsd emd; do start "$name" nice "$python" benchmarks/gpu_images.py "$name"; done
turn teacher 200
turn lmd 100
for k in 0 1 2; do turn "compiled$k" 30; done
start eager "$python" benchmarks/gpu_speed.py
turn eager 90
turn lsd 40
turn emd 40
turn prepare 20
"$python" benchmarks/gpu_report.py || echo "gpu: the report failed; $OUT/figures.jsonl has the figures"
cat "$OUT/report.md"
