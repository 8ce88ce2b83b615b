#!/bin/sh
# Two families, a small convolutional network and a transformer, trained and stitched: sh examples/digits/families.sh [DIR]
# More arguments go to restnet-export and win over those here: sh examples/digits/families.sh build/families --finetune none
set -eu
out=build/families
if [ $# -gt 0 ]; then
  out=$1
  shift
fi
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
anchors=build/digits

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

[ -f "$anchors/vit.pt" ] || python examples/digits/train.py --out "$anchors" --anchors cnn_t vit
restnet-export \
  --anchors "python:examples/digits/anchors.py:cnn_t@$anchors/cnn_t.pt" "python:examples/digits/anchors.py:vit@$anchors/vit.pt" \
  --data digits --input 8 --mean 0 --std 1 --interpolation box \
  --rule restnet --samples 200 --epochs 10 --lr 3e-3 --out "$out" "$@"
