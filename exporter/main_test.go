// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"os"
	"testing"

	"github.com/apache/arrow-go/v18/parquet/compress"
)

// TestMain makes the process's compressors before any test: what is made in a bubble of synctest can be used in no
// other one, and they are shared.
func TestMain(m *testing.M) {
	packed, err := packers["zstd"]([]byte("weft"))
	if err == nil {
		_, err = unzstd(packed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	codec, err := compress.GetCodec(compress.Codecs.Zstd)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	codec.Decode(make([]byte, 4), codec.Encode(make([]byte, 64), []byte("weft")))
	os.Exit(m.Run())
}
