"""``sa animate``: from an image and a motion to a video and its record."""
