#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Regenerates weft.pb.go and weft_grpc.pb.go. Needs protoc 3.21.12 (Debian:
# protobuf-compiler); the two plugins are pinned here, built into a folder that
# is removed again.
set -eu
cd "$(dirname "$0")"

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

PATH=$bin:$PATH protoc --go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative weft.proto
