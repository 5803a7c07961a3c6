"""`python -m minismtp` is the command `minismtp`."""

import sys

from minismtp.cli.main import main

sys.exit(main())
