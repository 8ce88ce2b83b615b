"""`python -m restnet_export` is `restnet-export`; `torchrun -m restnet_export` runs it in several processes."""

import sys

from .cli import main

sys.exit(main())
