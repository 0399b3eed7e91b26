#!/usr/bin/env bash
# The measurements on a GPU, on a machine that needs torch, torchvision, numpy, scikit-learn and pytest alone.
#   bash tests/performance/gpu.sh              the tests that need a GPU, and the paper's networks; about 400 s
#   bash tests/performance/gpu.sh more         plain baseline, compiled ViT-B/16, other optimizers; about 300 s
#   bash tests/performance/gpu.sh resnet50 ... these parts alone
# OUT: folder of the results and of all.log; PYTHON; OPTIONS of `speed`, which override those of a part; LIMIT: seconds
# a part. Each part has its own limit and its own file, so that one that hangs or fails costs no other.
set -o pipefail
cd "$(dirname "$0")/../.." || exit
OUT=${OUT:-speed-results} PYTHON=${PYTHON:-python3}
OPTIONS=${OPTIONS---device cuda --batch 128 --size 224 --stored 32 --channels 3 --precision bf16 --channels-last --threads 8 --steps 20}
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/deelbo-inductor}
failed=0

limited() { # SECONDS COMMAND...
  local limit=${LIMIT:-$1} code
  shift
  echo "== at $SECONDS s, at most $limit s: $*"
  timeout -k 10 "$limit" "$@"
  code=$?
  echo "== exit code $code at $SECONDS s"
  [ "$code" = 0 ] || failed=1
}

speed() { # SECONDS NAME OPTIONS...
  local limit=$1 name=$2
  shift 2
  # shellcheck disable=SC2086  # several words
  limited "$limit" "$PYTHON" -m bench --traceback speed "$@" --out "$OUT/$name.json" $OPTIONS
}

part() {
  case $1 in
    # without the project's pytest settings, whose plugins a bare machine lacks
    tests) limited 170 "$PYTHON" -m pytest -q -rs -c /dev/null --rootdir . --noconftest -p no:cacheprovider \
      tests/deelbo/training/test_on_gpu.py ;;
    resnet50) speed 110 resnet50 --backbone resnet50 --priors l2-sp ptyl --rounds 6 --profile ;;
    vit_b_16) speed 130 vit_b_16 --backbone vit_b_16 --priors l2-sp ptyl --rounds 6 --profile ;;
    resnet50_compile) speed 140 resnet50_compile --backbone resnet50 --priors l2-sp --rounds 6 --compile ;;
    convnext_tiny) speed 100 convnext_tiny --backbone convnext_tiny --priors l2-sp --rounds 4 ;;
    resnet50_naive) speed 90 resnet50_naive --backbone resnet50 --priors l2-sp --rounds 2 --naive-steps 8 --workers 12 ;;
    vit_b_16_compile) speed 140 vit_b_16_compile --backbone vit_b_16 --priors l2-sp --rounds 4 --compile ;;
    peers) speed 90 peers --peers --backbone resnet50 --rounds 6 ;;
    *) echo "no part $1: see the top of $0"; failed=1 ;;
  esac
}

case $* in
  '') parts="tests resnet50 vit_b_16 resnet50_compile convnext_tiny" ;;
  more) parts="resnet50_naive vit_b_16_compile peers" ;;
  *) parts=$* ;;
esac
mkdir -p "$OUT" || exit
{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  df -h /dev/shm
  limited 60 "$PYTHON" -c 'import sys, torch, torchvision, numpy, sklearn; cudnn = torch.backends.cudnn.version()
print(sys.version, torch.__version__, torchvision.__version__, numpy.__version__, sklearn.__version__, cudnn)'
  for one in $parts; do part "$one"; done
  exit $failed
} 2>&1 | tee -a "$OUT/all.log"
