"""The command line: one thin file a verb, shared options, one sink for everything that is printed."""
