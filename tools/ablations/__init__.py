"""The paper's ablations (Tables 2 to 5) on drawn figures: base, variants, scores and statistics."""
