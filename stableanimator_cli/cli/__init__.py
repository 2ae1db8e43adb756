"""The command line: one thin file per verb, shared options, one sink for all output."""
