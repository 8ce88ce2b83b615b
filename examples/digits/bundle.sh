#!/bin/sh
# Anchors trained on scikit-learn's digits -> a bundle: sh examples/digits/bundle.sh [DIR]
# Without DIR it remakes the bundle that ships with the package, and the picture in the README.
set -eu
shipped=restnet_runtime/bundles/digits
out=${1:-$shipped}
case $out in /* | "$shipped") ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
anchors=build/digits

# One thread and no active waiting: networks this small gain nothing from more, and a busy machine loses less.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

# The 8x8 digits are averages of 4x4 blocks of larger ones, so a larger image is brought to 8x8 by averages too (box).
python examples/digits/train.py --out "$anchors"
restnet-export \
  --anchors "python:examples/digits/anchors.py:cnn_s@$anchors/cnn_s.pt" "python:examples/digits/anchors.py:cnn_l@$anchors/cnn_l.pt" \
  --data digits --input 8 --mean 0 --std 1 --interpolation box \
  --rule restnet --samples 200 --steps 200 --out "$out"
if [ "$out" = "$shipped" ]; then
  cp "$out/report/routes.png" docs/routes.png
fi
