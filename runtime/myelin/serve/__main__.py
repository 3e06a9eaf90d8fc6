"""python -m myelin.serve: load the class that MODEL_NAME names and serve it."""

import gc
import sys

# What is imported and loaded before the first call stays: looking for garbage in it takes a tenth of the time to start.
gc.disable()

from myelin.serve.server import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
