#!/usr/bin/env bash
# Quantize with curl alone, against a running service: examples/curl.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

post() { curl --silent --show-error --fail-with-body "$@"; }

echo "A short vector as JSON, answered as JSON (levels and codes in base64):"
post "$url/quantize" \
    -H 'Content-Type: application/json' -H 'Accept: application/json' \
    -d '{"vector": [0.1, 0.2, 0.25, 0.9, 1.7, 4.2], "bits": 2, "seed": 7}'
echo

echo "A file of little-endian float32 values as it is, options in the query string:"
python3 -c 'import array, random, sys
array.array("f", (random.gauss(0, 1) for _ in range(100000))).tofile(sys.stdout.buffer)' >"$folder/vector.f32"
post "$url/quantize?bits=4&method=approx&seed=7" \
    -H 'Content-Type: application/octet-stream' \
    --data-binary "@$folder/vector.f32" -o "$folder/quantized.msgpack"

echo "The answer can be kept, and sent back as it is to be decoded:"
post "$url/dequantize" \
    -H 'Content-Type: application/vnd.msgpack' \
    --data-binary "@$folder/quantized.msgpack" -o "$folder/decoded.msgpack"
wc -c "$folder"/*

echo "What a refused request looks like:"
curl --silent "$url/quantize" -H 'Content-Type: application/json' -d '{"vector": [1, 2], "bits": 9}'
echo
