"""MovieLens-100K: download, read, split and prepare it, and rank its movies with a trained Climber."""
