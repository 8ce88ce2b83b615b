#!/bin/sh
# A convolutional network and a transformer, trained on scikit-learn's digits and joined both ways: sh examples/digits/families.sh [DIR]
set -eu
out=${1:-build/digits-families}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
anchors=build/digits

# One thread and no active waiting: networks this small gain nothing from more, and a busy machine loses less.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

python examples/digits/train.py --out "$anchors" --anchors cnn_t vit
restnet-export \
  --anchors "python:examples/digits/anchors.py:cnn_t@$anchors/cnn_t.pt" "python:examples/digits/anchors.py:vit@$anchors/vit.pt" \
  --data digits --input 8 --mean 0 --std 1 --interpolation box \
  --rule both-ways --samples 200 --steps 200 --out "$out"
