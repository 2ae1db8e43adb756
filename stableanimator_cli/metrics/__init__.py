"""Numbers about videos: pure functions, each with its definition and source."""
