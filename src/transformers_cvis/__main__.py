# SPDX-License-Identifier: Apache-2.0
"""Run the command line as `python -m transformers_cvis`."""

import sys

from transformers_cvis_cli import main

if __name__ == "__main__":
    sys.exit(main())
