package layout_test

import (
	"context"
	"fmt"

	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
)

func ExampleOpen() {
	r, err := ref.Parse("oci:images/app:v1")
	if err != nil {
		fmt.Println(err)
		return
	}
	repo, err := layout.Open(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(repo.Resolve(context.Background()))
}
