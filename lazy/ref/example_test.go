package ref_test

import (
	"fmt"

	"github.com/pexfs/pex/lazy/ref"
)

func ExampleParse() {
	for _, s := range []string{"python:3.12", "localhost:5000/app", "oci:images/app:v1"} {
		r, err := ref.Parse(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(r.Transport, r)
	}
	// Output:
	// registry index.docker.io/library/python:3.12
	// registry localhost:5000/app:latest
	// oci oci:images/app:v1
}
