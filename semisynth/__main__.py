"""`python -m semisynth`, as torchrun calls it."""

import sys

from semisynth.cli import main

sys.exit(main())
