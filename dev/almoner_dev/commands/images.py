"""`images build`: the two images from the Dockerfiles, without a registry; `images checkout`: one for tests."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from almoner_dev.processes import ProcessError

HELP_CHECKOUT = (
    "write an image of this checkout and its packages, for `make e2e KUBECONFIG=FILE IMAGE=REF`; nothing to publish"
)
HELP = "build the images of operator and runner with buildah (root), on a base of Debian that is made here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `images`."""
    below = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = below.add_parser("build", help=HELP, description=HELP)
    build.add_argument("--output", type=Path, metavar="DIR", help="also copy the archives into this folder")
    build.add_argument("--base", metavar="REF", help="an image of a registry to build on, with its registry's name")
    build.add_argument("--verify", action="store_true", help="build a second time, and say whether both are the same")
    checkout = below.add_parser("checkout", help=HELP_CHECKOUT, description=HELP_CHECKOUT)
    checkout.add_argument("--output", type=Path, metavar="FILE", required=True, help="the OCI archive to write")
    checkout.add_argument("--name", metavar="REF", help="the image's name (default: localhost/almoner-checkout:1)")


def run(options: argparse.Namespace) -> int:
    """Does what the action says; returns the exit code. Raises as `build`, and ModelUnavailableError."""
    return _checkout(options) if options.action == "checkout" else _build(options)


def _checkout(options: argparse.Namespace) -> int:
    from almoner_dev import model  # noqa: PLC0415 - --help does not need it
    from almoner_dev.cluster import checkout  # noqa: PLC0415 - likewise

    name = options.name or checkout.REFERENCE
    try:
        path = checkout.write_image(options.output, name, more=[model.weights()])
    except OSError as error:
        raise ProcessError(f"--output: {error}") from error
    print(f"{name}: {path} ({path.stat().st_size / 1e6:.0f} MB), an OCI archive: load it, or push it, under that name")
    return 0


def _build(options: argparse.Namespace) -> int:
    """Builds, and prints a line for each image: archive, digest, sizes, time. Exit code 1: two builds differ.

    Raises ImagesImpossible with what the machine lacks, and ProcessError where the folder cannot be written.
    """
    from almoner_dev import images  # noqa: PLC0415 - --help does not need it

    if options.output:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProcessError(f"--output: {error}") from error
    built = images.build(base=options.base)
    for part, image in built.items():
        path = Path(shutil.copy(image.path, options.output)) if options.output else image.path
        took = f"built in {image.seconds:.0f} s" if image.seconds else "from the cache"
        print(
            f"{images.reference(part)}: {path}\n"
            f"  {image.digest}\n"
            f"  {image.unpacked / 1e6:.0f} MB, of which {image.added / 1e6:.0f} MB are Almoner and its packages; "
            f"{image.packed / 1e6:.0f} MB to transfer; {took}"
        )
    if not options.verify:
        return 0
    found = images.verify(built, base=options.base)
    print("\n".join(found) or "a second build gave the same archives, byte for byte")
    return 1 if found else 0
