#!/bin/sh
# The whole way: train, stitch, serve, ask with curl, tighten the budget, ask again. `make demo` runs this.
set -eu
cd "$(dirname "$0")/../.."
out=build/demo
rm -rf "$out"
mkdir -p "$out"
started=$(date +%s)

say() { printf '\n== %s\n' "$*"; }
# The commands that are shown are the commands that run, quoted where a shell needs it.
show() {
  printf '$'
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=@,-]*) printf " '%s'" "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
  printf '\n'
  "$@"
  printf '\n'
}
field() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

command -v curl >/dev/null || { echo "the demo needs curl"; exit 1; }

say "1. two anchors, trained on the digits of scikit-learn, stitched and exported"
sh examples/digits/bundle.sh "$out/digits"
python examples/digits/images.py --out "$out/images"

say "2. the bundle, checked and listed"
show restnet-inspect "$out/digits"

say "3. the server"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
echo "$ restnet-serve $out/digits --port $port &"
restnet-serve "$out/digits" --port "$port" --cache "$out/cache" 2>"$out/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
tries=0
until [ "$(curl -s "$url/status" | python -c 'import json, sys; r = json.loads(sys.stdin.read() or "{\"routes\": {\"loaded\": [], \"known\": 1}}")["routes"]; print(len(r["loaded"]) == r["known"])')" = True ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { echo "the server does not get ready:"; cat "$out/server.log"; exit 1; }
  sleep 0.2
done

say "4. real images, no limits: the most accurate route answers"
for digit in 0 1 2; do
  show curl -sS -F "image=@$out/images/$digit.png" "$url/predict?top_k=2"
done
before=$(curl -sS -F "image=@$out/images/3.png" "$url/predict" | field route)

say "5. a smaller budget: the next answers come from a cheaper route"
show curl -sS -X PUT -H 'Content-Type: application/json' -d '{"budget": "600kFLOPs"}' "$url/budget"
for digit in 0 1 2; do
  show curl -sS -F "image=@$out/images/$digit.png" "$url/predict?top_k=2"
done
after=$(curl -sS -F "image=@$out/images/3.png" "$url/predict" | field route)

say "6. a limit for one request alone"
show curl -sS -H 'X-Restnet-Budget: 300kFLOPs' -F "image=@$out/images/0.png" "$url/predict?top_k=2"

kill -TERM "$server"
wait "$server"
trap - EXIT

say "7. two kinds of network, a convolutional one and a transformer, joined both ways"
sh examples/digits/families.sh "$out/families"

say "before the budget: $before; after it: $after; curve: $out/digits/report/routes.png; $(($(date +%s) - started)) s"
[ "$before" != "$after" ] || { echo "the route did not change"; exit 1; }
