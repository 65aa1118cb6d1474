"""What leaves the house: recipes, trainer configurations, shards."""
