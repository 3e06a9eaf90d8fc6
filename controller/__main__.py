"""python -m controller: the same as `myelin`."""

from controller.cli import main

if __name__ == "__main__":
    main()
