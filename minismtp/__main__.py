"""`python -m minismtp` is the command `minismtp` (layer 7)."""

import sys

from minismtp.cli.main import main

sys.exit(main())
