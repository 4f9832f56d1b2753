// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/encoding"
)

// packers compress a body into a slice of its own, by the name that
// Content-Encoding has for it.
var packers = map[string]func([]byte) ([]byte, error){
	"none": func(b []byte) ([]byte, error) { return bytes.Clone(b), nil },
	"gzip": packGzip,
	"zstd": func(b []byte) ([]byte, error) {
		e, err := zstdEncoder()
		if err != nil {
			return nil, err
		}
		return e.EncodeAll(b, make([]byte, 0, len(b)/8)), nil
	},
}

// gzipLevel takes less than half of the time that the standard library's default level
// takes, for 7 % more bytes; see DESIGN.md.
const gzipLevel = 5

var gzipWriters = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzipLevel)
	if err != nil {
		panic(err) // only of a level that there is not
	}
	return w
}}

func packGzip(b []byte) ([]byte, error) {
	w := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(w)
	var out bytes.Buffer
	out.Grow(len(b) / 8)
	w.Reset(&out)
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// The one zstd encoder and decoder of this process, made when first needed: each
// works on one buffer at a time and has a window of at most 1 MiB.
var (
	zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	})
	zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(16<<20))
	})
)

func init() {
	encoding.RegisterCompressor(grpcGzip{})
	encoding.RegisterCompressor(grpcZstd{})
}

// grpcGzip is gzip for gRPC, whose own is the standard library's.
type grpcGzip struct{}

// Name is what grpc-encoding calls it.
func (grpcGzip) Name() string { return "gzip" }

// Compress returns a writer to w that is to be closed once.
func (grpcGzip) Compress(w io.Writer) (io.WriteCloser, error) {
	g := gzipWriters.Get().(*gzip.Writer)
	g.Reset(w)
	return gzipBody{g}, nil
}

// Decompress reads r.
func (grpcGzip) Decompress(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }

// gzipBody is a borrowed writer.
type gzipBody struct{ *gzip.Writer }

// Close writes what is left, and gives the writer back.
func (g gzipBody) Close() error {
	defer gzipWriters.Put(g.Writer)
	return g.Writer.Close()
}

// grpcZstd is zstd for gRPC, which has only gzip of its own.
type grpcZstd struct{}

// Name is what grpc-encoding calls it.
func (grpcZstd) Name() string { return "zstd" }

// Compress returns a writer that hands everything to w when it is closed.
func (grpcZstd) Compress(w io.Writer) (io.WriteCloser, error) { return &zstdBody{to: w}, nil }

// Decompress reads all of r.
func (grpcZstd) Decompress(r io.Reader) (io.Reader, error) {
	packed, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	plain, err := unzstd(packed)
	return bytes.NewReader(plain), err
}

// unzstd unpacks a whole body, of at most 16 MiB.
func unzstd(packed []byte) ([]byte, error) {
	d, err := zstdDecoder()
	if err != nil {
		return nil, err
	}
	return d.DecodeAll(packed, nil)
}

// zstdBody collects a message.
type zstdBody struct {
	to  io.Writer
	all []byte
}

// Write keeps b.
func (z *zstdBody) Write(b []byte) (int, error) { z.all = append(z.all, b...); return len(b), nil }

// Close compresses.
func (z *zstdBody) Close() error {
	packed, err := packers["zstd"](z.all)
	if err != nil {
		return err
	}
	_, err = z.to.Write(packed)
	return err
}
