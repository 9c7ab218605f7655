package convert_test

import (
	"context"
	"fmt"

	"github.com/pexfs/pex/cmd/internal/convert"
)

func ExampleConvert() {
	res, err := convert.Convert(context.Background(), "localhost:5000/app:v1", "oci:images/app:v1", convert.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, l := range res.Layers {
		fmt.Println(l.From.Digest, "is now", l.To.Digest, l.Kept)
	}
}
