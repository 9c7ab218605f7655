package machine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"

	"github.com/pexfs/pex/vm"
)

func TestServeRootVerity(t *testing.T) {
	image, err := openFake(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	ctx, kill := context.WithCancelCause(t.Context())
	defer kill(nil)
	r, err := serveRoot(ctx, kill, image, Verity, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"pex.root=verity:/dev/vda:/dev/vdb:512:00ff"}; !slices.Equal(r.params, want) {
		t.Errorf("parameters %s, want %s", r.params, want)
	}
	device, ok := r.device.(vm.Verity)
	if !ok || device.Data != image.File() {
		t.Fatalf("device %+v", r.device)
	}
	r.started()
	if _, err := device.Hash.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the tree is still open: %v", err)
	}
	r.close()
	if _, err := image.File().Stat(); err != nil {
		t.Errorf("the image was closed: %v", err)
	}

	if _, err := serveRoot(ctx, kill, fakeImage{unsealed: true}, Verity, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("an image without a root was taken")
	}
}
