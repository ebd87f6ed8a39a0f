"""Named weights: those shipped in the package, and published ones that are downloaded."""
