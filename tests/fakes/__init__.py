"""One simulated outside: every port in memory, one world, one hand-moved clock, faults injectable by name."""
