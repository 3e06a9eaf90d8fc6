"""python -m myelin.proxy: route as the file at MYELIN_CONFIG says, and follow its changes."""

import sys

from myelin.proxy.server import main

if __name__ == "__main__":
    sys.exit(main())
