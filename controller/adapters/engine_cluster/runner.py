"""The program that runs a job in its pod, as an artifact: it is laid over images that Myelin did not lay itself.

It needs a Python in the image, and nothing else of it (`myelin.job` is of the standard library alone).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import package_folder
from controller.adapters.oci.layout import Layout
from policies.terms.digest import Digest

START = """import os
import sys

from myelin.job.__main__ import main

os._exit(main(sys.argv[1:]))
"""
"""What `python FOLDER` runs. It ends as `python -m myelin.job` does."""


def keep_runner(layout: Layout) -> Digest:
    """Keep the program; equal versions of it give an equal digest.

    Raises:
        DesiredStateError: The package is not installed beside the controller.
        OutsideError: It cannot be kept now.
    """
    source = package_folder("myelin")
    with tempfile.TemporaryDirectory(prefix="runner-") as place:
        folder = Path(place)
        (folder / "myelin" / "job").mkdir(parents=True)
        shutil.copyfile(source / "__init__.py", folder / "myelin" / "__init__.py")
        for path in sorted((source / "job").glob("*.py")):
            shutil.copyfile(path, folder / "myelin" / "job" / path.name)
        (folder / "__main__.py").write_text(START)
        return ArtifactStore(layout).put_folder(folder)
