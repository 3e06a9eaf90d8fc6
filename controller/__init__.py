"""RUNS: processes, adapters, the command line, the inbox, and the wiring between them."""
