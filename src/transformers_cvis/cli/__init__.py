# SPDX-License-Identifier: Apache-2.0
"""Commands of `transformers-cvis`, one module per family. `transformers_cvis_cli` holds their parsers."""
