"""``sa animate``: a picture and a motion to a video with a record beside it."""
