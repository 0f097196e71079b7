"""`python -m common_ml_utils.promotion`: see `commands.py`."""

import sys

from common_ml_utils.promotion.commands import main

if __name__ == "__main__":
    sys.exit(main())
