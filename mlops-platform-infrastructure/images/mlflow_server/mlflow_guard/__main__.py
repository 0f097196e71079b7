"""`python -m mlflow_guard init|serve|user`."""

import sys

from mlflow_guard.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
