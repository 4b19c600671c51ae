"""The command line: `transformers-cvis`."""
