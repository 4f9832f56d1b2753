#!/usr/bin/env bash
# Builds the receivers that `make test-receivers` sends to, from the Go module proxy, into the given
# folder: otelcol, prometheus, victoria-metrics; and puts DuckDB there, which reads files, from npm
# (needs node and npm). What is there already is left alone. A quarter of an
# hour on two cores the first time, a gigabyte of Go's caches.
set -euo pipefail

collector=v0.160.0 # the newest whose fileexporter builds from the proxy; collector.yaml has it too
prometheus=v0.316.0
victoria=v1.150.0 # the newest that the proxy has whole

duckdb=1.5.6-r.1

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0

if [ ! -x "$to/prometheus-$prometheus" ]; then
	GOBIN=$work go install -tags remove_all_sd "github.com/prometheus/prometheus/cmd/prometheus@$prometheus"
	mv "$work/prometheus" "$to/prometheus-$prometheus"
fi

# VictoriaMetrics' own go.mod is meant for its vendor folder, so it is a dependency of an empty module.
if [ ! -x "$to/victoria-metrics-$victoria" ]; then
	mkdir "$work/vm"
	(cd "$work/vm" && go mod init weft.test/vm && go get "github.com/VictoriaMetrics/VictoriaMetrics@$victoria" &&
		GOFLAGS=-mod=mod go build -o "$to/victoria-metrics-$victoria" github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics)
fi

if [ ! -x "$to/otelcol-$collector" ]; then
	GOBIN=$work go install "go.opentelemetry.io/collector/cmd/builder@$collector"
	# The builder would tidy its module, which asks for the tests of every dependency; the proxy has not all of them.
	sed "s|output_path: .*|output_path: $work/otelcol|" "$here/collector.yaml" > "$work/collector.yaml"
	"$work/builder" --config "$work/collector.yaml" --skip-get-modules --skip-compilation
	mapfile -t modules < <(sed -n 's/.*gomod: \(.*\) \(v.*\)/\1@\2/p' "$here/collector.yaml")
	(cd "$work/otelcol" && go mod init weft.test/otelcol && go get "go.opentelemetry.io/collector/otelcol@$collector" "${modules[@]}" &&
		GOFLAGS=-mod=mod go build -o "$to/otelcol-$collector" .)
fi

if [ ! -e "$to/duckdb/$duckdb" ]; then
	rm -rf "$to/duckdb"
	npm install --prefix "$to/duckdb" --no-audit --no-fund --silent "@duckdb/node-api@$duckdb"
	touch "$to/duckdb/$duckdb"
fi

for name in "otelcol-$collector" "prometheus-$prometheus" "victoria-metrics-$victoria"; do
	ln -sf "$name" "$to/${name%-v*}"
done
