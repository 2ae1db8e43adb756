"""``sa app``: a page in the browser around ``sa animate``, for one person on this machine."""
