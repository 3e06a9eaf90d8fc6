"""python -m myelin.serve: load the class that MODEL_NAME names and serve it."""

import sys

from myelin.serve.server import main

if __name__ == "__main__":
    sys.exit(main())
