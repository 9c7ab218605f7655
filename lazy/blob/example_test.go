package blob_test

import (
	"context"
	"fmt"
	"io"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

func ExampleRetry() {
	var used blob.Counter
	src := blob.Retry(blob.Count(blobtest.Bytes("0123456789"), &used), blob.Policy{})
	rc, err := src.Fetch(context.Background(), 3, 4)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	fmt.Println(string(b), err, used.Requests(), used.Bytes())
	// Output: 3456 <nil> 1 4
}
