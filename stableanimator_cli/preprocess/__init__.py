"""``sa preprocess``: videos become clip folders, skeleton videos and motions; datasets are looked over."""
