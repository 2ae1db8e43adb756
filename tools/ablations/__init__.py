"""The paper's ablations (Tables 2, 3 and 4) on drawn figures: base, variants, scores and statistics."""
