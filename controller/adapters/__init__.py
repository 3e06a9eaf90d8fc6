"""One package, one door: each third-party package is imported by exactly one file here."""
