"""`e2e`: the tests in a cluster, on a real node that is started here, on kind, or on any kubeconfig."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from almoner_dev.cache import say
from almoner_dev.processes import ProcessError

HELP = "run tests/cluster on a real node of this machine (root), on kind (--kind), or on any cluster (--kubeconfig)"
ROOT = Path(__file__).resolve().parents[3]
TESTS = "tests/cluster"
KUBECONFIG_VARIABLE = "ALMONER_E2E_KUBECONFIG"
KIND_VARIABLE = "ALMONER_E2E_KIND"
IMAGES_VARIABLE = "ALMONER_E2E_IMAGES"
IMAGE_VARIABLE = "ALMONER_E2E_IMAGE"
KIND_SECONDS = "180s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `e2e`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--kubeconfig", type=Path, metavar="FILE", help="an administrator's, of a cluster for tests")
    where.add_argument(
        "--kind", action="store_true", help="a throw-away kind cluster (tests/e2e/kind.yaml); needs Docker"
    )
    where.add_argument("--check", action="store_true", help="say whether a real node can be started here, and end")
    where.add_argument("--packages", action="store_true", help="print the Debian packages that one lacks, and end")
    parser.add_argument(
        "--image",
        metavar="REF",
        help="with --kubeconfig: the image of this checkout, which the cluster has or can pull (`images checkout` "
        "writes it); without it the tests that install Almoner are skipped",
    )
    parser.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="for pytest, after --: files, -k, -x, ...")


def run(options: argparse.Namespace) -> int:
    """Runs the tests; returns pytest's exit code. Says what the machine lacks before anything is built.

    Raises NodeImpossible where a real node cannot be started, and ProcessError where kind cannot be used.
    """
    from almoner_dev.cluster import requirements  # noqa: PLC0415 - --help does not need it
    from almoner_dev.images import machine  # noqa: PLC0415 - likewise

    if options.packages:
        print(" ".join(sorted({*requirements.lacking_packages(), *machine.lacking_packages()})))
        return 0
    if options.check:
        requirements.demand()
        print("a real node can be started here")
        print(without_images() or "and the images can be built")
        return 0
    if options.image and not options.kubeconfig:
        raise ProcessError("--image goes with --kubeconfig: elsewhere the image is made and loaded by itself")
    ours = {KUBECONFIG_VARIABLE, KIND_VARIABLE, IMAGE_VARIABLE}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with contextlib.ExitStack() as stack:
        if options.kind:
            name, kubeconfig = stack.enter_context(kind_cluster())
            environment |= {KIND_VARIABLE: name, KUBECONFIG_VARIABLE: str(kubeconfig)}
            environment |= {IMAGE_VARIABLE: load_into_kind(name)}
        elif options.kubeconfig:
            if not options.kubeconfig.is_file():
                raise ProcessError(f"--kubeconfig: there is no file {options.kubeconfig}")
            environment[KUBECONFIG_VARIABLE] = str(options.kubeconfig.resolve())
            if options.image:
                environment[IMAGE_VARIABLE] = options.image
        else:
            requirements.demand()
        prepare(real_node=KUBECONFIG_VARIABLE not in environment)
        if KUBECONFIG_VARIABLE not in environment and IMAGES_VARIABLE not in environment:
            environment |= image_folder()
        files = [] if any(part.startswith(TESTS) for part in options.pytest) else [TESTS]
        command = [sys.executable, "-m", "pytest", *files, *options.pytest]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def load_into_kind(name: str) -> str:
    """Makes the image of this checkout, loads it into a kind cluster, and returns its name. Raises ProcessError."""
    from almoner_dev import model  # noqa: PLC0415 - --help does not need it
    from almoner_dev.cluster import checkout  # noqa: PLC0415 - likewise

    with tempfile.TemporaryDirectory(prefix="almoner-image-") as folder:
        archive = Path(folder) / "checkout.tar"
        checkout.write_image(archive, checkout.REFERENCE, more=[model.weights()])
        if subprocess.run(["kind", "load", "image-archive", str(archive), "--name", name], check=False).returncode != 0:
            raise ProcessError("kind could not load the image of this checkout; what it said is above")
    return checkout.REFERENCE


def prepare(*, real_node: bool) -> None:
    """Fills the cache with what the tests need, before any test's time runs.

    Raises what names what is missing and what to do: binaries.BinariesMissing, gotools.ToolMissing, or
    model.ModelUnavailableError.
    """
    from almoner_dev import binaries, cluster, gotools, model  # noqa: PLC0415 - --help does not need it

    binaries.find()
    for name in (*(cluster.TOOLS if real_node else ()), "helm"):
        gotools.path(name)
    model.weights()


def without_images() -> str:
    """Says in one line why the images of the Dockerfiles cannot be built here; nothing: they can."""
    from almoner_dev import images  # noqa: PLC0415 - --help does not need it
    from almoner_dev.images import machine  # noqa: PLC0415 - likewise

    return _without_images("; ".join(machine.refusals(images.cache_folder())))


def image_folder() -> dict[str, str]:
    """Builds the images, and returns the variable that leads the tests to them; nothing where that cannot be done.

    Raises ImagesImpossible where everything is at hand and a Dockerfile fails.
    """
    from almoner_dev import images  # noqa: PLC0415 - --help does not need it

    reason = without_images()
    if not reason:
        try:
            built = images.build()
        except images.NothingToBuildFrom as error:
            reason = _without_images(" ".join(str(error).split()))
        else:
            return {IMAGES_VARIABLE: str(built["operator"].path.parent)}
    say(reason)
    return {}


def _without_images(why: str) -> str:
    return why and f"the chart is installed with an image of this checkout, not with those of the Dockerfiles: {why}"


@contextlib.contextmanager
def kind_cluster() -> Iterator[tuple[str, Path]]:
    """Makes a kind cluster, gives its name and kubeconfig, deletes it. Raises ProcessError without Docker."""
    lacking = [name for name in ("docker", "kind") if shutil.which(name) is None]
    if lacking:
        raise ProcessError(
            f"--kind needs {' and '.join(lacking)}, which this machine has not; without: a real node, as root"
        )
    name = f"almoner-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="almoner-kind-") as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        configuration = ROOT / "tests" / "e2e" / "kind.yaml"
        say(f"making the kind cluster {name}")
        create = ["kind", "create", "cluster", "--name", name, "--config", str(configuration), "--wait", KIND_SECONDS]
        try:
            if subprocess.run([*create, "--kubeconfig", str(kubeconfig)], check=False).returncode != 0:
                raise ProcessError("kind could not make a cluster; what it said is above")
            yield name, kubeconfig
        finally:
            subprocess.run(["kind", "delete", "cluster", "--name", name], check=False)
