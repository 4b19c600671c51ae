# SPDX-License-Identifier: Apache-2.0
"""The commands of `transformers-cvis`, a module per family; their parsers lie in `transformers_cvis_cli`."""
