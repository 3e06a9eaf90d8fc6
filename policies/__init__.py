"""DECIDES: pure functions over frozen values; no disk, network, clock, chance or log of its own."""
